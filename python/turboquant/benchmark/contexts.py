# SPDX-License-Identifier: Apache-2.0
"""The comparison's question of the longest context that fits, for both caches."""

from __future__ import annotations

import contextlib

from transformers import DynamicCache, PreTrainedModel

from turboquant.benchmark import longest
from turboquant.benchmark.arms import Setting, turboquant_arm
from turboquant.benchmark.progress import Progress


def longest_contexts(model: PreTrainedModel, setting: Setting, progress: Progress) -> dict[str, int]:
    """Of both caches, ours with its room made ahead."""
    import turboquant

    options = {"k_bits": setting.k_bits, "v_bits": setting.v_bits, "fringe": setting.fringe}
    ours = turboquant_arm(model, setting)
    shapes = longest.layer_shapes(model)
    token_bytes = longest.bytes_a_token(shapes, model.dtype.itemsize)
    with progress.task("the longest context that fits: DynamicCache") as step:
        # In one call: in many, a DynamicCache would copy itself each time and hold no more in the end.
        found = {"baseline": longest.longest(model, lambda _: DynamicCache(config=model.config), contextlib.nullcontext, shapes, token_bytes, 1 << 40, step)}
    share = (setting.k_bits + setting.v_bits) / (16 * model.dtype.itemsize)
    with progress.task(f"the longest context that fits: {ours.label}") as step:
        found["turboquant"] = longest.longest(
            model, lambda room: turboquant.TurboQuantCache(model.config, max_tokens=room, **options), ours.attention, shapes,
            token_bytes * share, on_try=step,
        )  # fmt: skip
    return found
