# SPDX-License-Identifier: Apache-2.0
"""Teacher-forced comparison of the two caches on a given text.

What is measured. Both caches get the same tokens in the same calls: first a prefix in one call, then the rest, `chunk`
tokens a call. Prefill attends to its own keys and values as given, so nothing is measured on the prefix: its logits do not
depend on the cache. At each later position the next-token distributions are compared, KL(baseline || TurboQuant). A query
there sees the prefix and the earlier calls through the compressed cache (its fringe included), and the tokens of its own
call exactly: with chunk = 1 that is decoding to the letter; with chunk = 16 the newest tokens seen exactly are on average 7.5
more than the fringe has.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from turboquant.benchmark.arms import Arm
from turboquant.benchmark.metrics import Fidelity


@torch.no_grad()
def compare_on_text(
    model: PreTrainedModel,
    arms: Sequence[Arm],
    tokens: torch.Tensor,
    prefix: int,
    chunk: int,
    on_tokens: Callable[[int], None] = lambda count: None,
) -> Fidelity:
    """`tokens` [count]; arms are (baseline, ours). Positions prefix .. count - 1 are measured."""
    if not 0 < prefix < len(tokens) or chunk < 1:
        raise ValueError(f"prefix={prefix} and chunk={chunk} do not fit a text of {len(tokens)} tokens")
    caches = [arm.make_cache(len(tokens)) for arm in arms]
    for arm, cache in zip(arms, caches):
        _logits(model, arm, cache, tokens[:prefix], last_only=True)
    on_tokens(prefix)
    parts = []
    for start in range(prefix, len(tokens), chunk):
        piece = tokens[start : start + chunk]
        reference, ours = (_logits(model, arm, cache, piece) for arm, cache in zip(arms, caches))
        parts.append(Fidelity.of_logits(start, reference, ours))
        on_tokens(len(piece))
    return Fidelity.joined(parts)


def _logits(model: PreTrainedModel, arm: Arm, cache: object, tokens: torch.Tensor, last_only: bool = False) -> torch.Tensor:
    # A long prefix times the vocabulary is the largest tensor of all, and nobody looks at it.
    keep = {"logits_to_keep": 1} if last_only and "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    with arm.attention():
        out = model(input_ids=tokens[None].to(model.device), past_key_values=cache, use_cache=True, **keep)
    return out.logits[0].float()
