# SPDX-License-Identifier: Apache-2.0
"""Bytes of a cache by the allocator: resident after a prefill, and the most that prefill and decoding hold for its sake."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

import turboquant

from . import allocator, fill
from .first_token import prefill, prompt
from .rows import Row
from .run import Run
from .steps import Decoder, attention

STEPS = 80  # crosses the end of a page wherever the prompt ends
ARMS = {"flash": fill.dense_cache, "turboquant": lambda model: turboquant.TurboQuantCache(model.config)}


def measure(model: PreTrainedModel, row: Row, run: Run) -> dict:
    ids = prompt(model, row.batch, row.tokens)
    prefill(model, None, "flash", ids[:, :64])  # libraries' own workspaces are there from now on
    prefill(model, ARMS["turboquant"](model), "turboquant", ids[:, :64])
    found = {arm: _arm(model, arm, ids) for arm in ARMS}
    ours, dense = found["turboquant"], found["flash"]
    if model.device.type != "cuda":  # nothing was counted
        return {"bytes": found}
    return {
        "bytes": found,
        "resident_share": ours["resident"] / dense["resident"],
        "extra_share": max(ours["prefill_extra"], ours["decode_extra"]) / dense["resident"],
        "baseline_extra_share": max(dense["prefill_extra"], dense["decode_extra"]) / dense["resident"],
        "nbytes_off": abs(ours["nbytes"] - ours["requested"]),
    }


def _arm(model: PreTrainedModel, arm: str, ids: torch.Tensor) -> dict[str, int]:
    """Extra bytes are the peak less the same call's peak without a cache; `decode_extra` less what was held before the prefill,
    as a step's own activations are next to nothing."""
    device = model.device
    allocator.settle(device)
    without = allocator.Peak(device)
    prefill(model, None, arm, ids)
    without_cache = without.bytes()

    allocator.settle(device)
    before, before_requested = allocator.allocated(device), allocator.requested(device)
    peak = allocator.Peak(device)
    cache = ARMS[arm](model)
    first = prefill(model, cache, arm, ids)
    prefill_peak = peak.bytes()
    allocator.settle(device)
    result = {
        "prefill_extra": prefill_peak - without_cache,
        "resident": allocator.allocated(device) - before - first.nbytes,
        "requested": allocator.requested(device) - before_requested - first.nbytes,
    }
    if arm == "turboquant":
        result |= {"nbytes": cache.nbytes, "nbytes_16bit": cache.nbytes_16bit}
    decoder = Decoder(model, cache, arm, len(ids))
    decoder.tokens = first
    peak = allocator.Peak(device)
    with attention(model, arm):
        for _ in range(STEPS):
            decoder.step()
    return result | {"decode_extra": peak.bytes() - before, "resident_after_decode": allocator.allocated(device) - before}
