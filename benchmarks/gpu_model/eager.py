# SPDX-License-Identifier: Apache-2.0
"""Eager decoding steps: DynamicCache with torch's own choice of SDPA and with its flash backend, and ours."""

from __future__ import annotations

from transformers import PreTrainedModel

import turboquant

from . import allocator, fill
from .rows import Row
from .run import Run
from .steps import Decoder, attention, in_blocks, in_turn, of_all, ratio, summary

BASELINES = ("default", "flash")
PAIRS = 160  # of steps: on a busy host one in ten is off by a tenth, so the median's error is 0.01 of 100 and less of these


def decoders(model: PreTrainedModel, batch: int, tokens: int) -> dict[str, Decoder]:
    """The two baselines share one cache, which each of their steps lets grow: two would not fit beside the weights."""
    ours = turboquant.TurboQuantCache(model.config)
    fill.fill_ours(model, ours, batch, tokens)
    dense = fill.dense_cache(model)
    fill.fill_with_the_same(dense, ours)
    caches = {"default": dense, "flash": dense, "turboquant": ours}
    return {arm: Decoder(model, cache, arm, batch) for arm, cache in caches.items()}


def check(arms: dict[str, Decoder]) -> dict:
    """All arms' logits after the same tokens. Ours may be as far from the flash backend's as twice torch's two backends
    are from each other: they hold the same keys and values."""
    logits = {}
    for name, decoder in arms.items():
        with attention(decoder.model, name):
            logits[name] = decoder.logits().float()
        decoder.cache.crop(-1)
    scale = logits["flash"].norm()
    far = {name: float((logits[name] - logits["flash"]).norm() / scale) for name in logits}
    return {"error": far["turboquant"], "sdpa_error": far["default"], "right": far["turboquant"] <= 2 * far["default"]}


def measure(model: PreTrainedModel, row: Row, run: Run) -> dict:
    arms = decoders(model, row.batch, row.tokens)
    result = check(arms)
    allocator.settle(model.device)  # of what filling took
    steps = {name: decoder.timed for name, decoder in arms.items()}
    ms = {name: summary(values) for name, values in in_turn(steps, *((2, 3) if run.quick else (3, 5))).items()}
    best = min(BASELINES, key=lambda name: ms[name]["median"])
    pairs = in_blocks({name: steps[name] for name in (best, "turboquant")}, 8 if run.quick else PAIRS)
    ms |= {name: of_all(times) for name, times in pairs.items()}
    faster = ratio(pairs[best], pairs["turboquant"])
    return result | {"ms": ms, "baseline": best, "ratio": faster, "speedup": faster["median"]}
