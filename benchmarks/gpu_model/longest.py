# SPDX-License-Identifier: Apache-2.0
"""The longest context that a sequence decodes with beside the weights: DynamicCache, ours with room made ahead, and ours growing."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedModel
from transformers.cache_utils import Cache

import turboquant
from turboquant.benchmark import longest

from . import fill
from .rows import Row
from .run import Run
from .steps import attention

# The attention, the cache with room for so many tokens, its bytes beside 16-bit ones.
ARMS: dict[str, tuple[str, Callable[[PreTrainedModel, int], Cache], float]] = {
    "flash": ("flash", lambda model, _: fill.dense_cache(model), 1.0),
    "turboquant": ("turboquant", lambda model, tokens: turboquant.TurboQuantCache(model.config, max_tokens=tokens), 17 / 64),
    "turboquant, growing": ("turboquant", lambda model, _: turboquant.TurboQuantCache(model.config), 17 / 64),
}


def measure(model: PreTrainedModel, row: Row, run: Run) -> dict:
    shapes = longest.layer_shapes(model)
    token_bytes = longest.bytes_a_token(shapes, model.dtype.itemsize)
    found = {arm: _longest(model, *ARMS[arm], shapes, token_bytes) for arm in ARMS}
    ratios = {arm: count / found["flash"] for arm, count in found.items() if arm != "flash" and found["flash"]}
    return {"longest": found, "ratios": ratios, "length_ratio": max(ratios.values(), default=None)}


def _longest(model: PreTrainedModel, attends: str, make: Callable, share: float, shapes: longest.Shapes, token_bytes: int) -> int:
    # A DynamicCache is filled in one call: in many it would copy itself each time, and hold no more in the end.
    chunk = longest.CHUNK if attends == "turboquant" else 1 << 40
    return longest.longest(model, lambda tokens: make(model, tokens), lambda: attention(model, attends), shapes, share * token_bytes, chunk)
