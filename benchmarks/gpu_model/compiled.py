# SPDX-License-Identifier: Apache-2.0
"""Decoding steps of fixed capacity under torch.compile with CUDA graphs: transformers' StaticCache, and ours.

The floor is what a step must read, the weights and the pages, at the rate of a copy of this run.
"""

from __future__ import annotations

import time

import torch
from transformers import PreTrainedModel, StaticCache
from transformers.cache_utils import Cache

import turboquant

from . import fill
from .rows import Row
from .run import Run
from .steps import Decoder, attention, in_turn, summary, synchronize
from .subject import weight_bytes

ROOM = 64  # tokens behind the filled ones: StaticCache attends to all of its capacity


def caches(model: PreTrainedModel, batch: int, tokens: int) -> dict[str, Cache]:
    ours = turboquant.TurboQuantStaticCache(model.config, max_tokens=tokens + ROOM)
    fill.fill_static(model, ours, batch, tokens)
    theirs = StaticCache(config=model.config, max_cache_len=tokens + ROOM)
    fill.fill_dense(model, theirs, batch, tokens)
    return {"static": theirs, "turboquant": ours}


def page_bytes(model: PreTrainedModel, batch: int, tokens: int) -> int:
    """Of the codes of so many tokens, at 4 bits."""
    heads = fill.Heads(model, batch)
    page = turboquant.ops.page_bytes(heads.head_dim, 4, 4)
    return heads.layers * heads.kv_heads * batch * tokens * page // 64


def measure(model: PreTrainedModel, row: Row, run: Run) -> dict:
    forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    try:
        decoders = {arm: Decoder(model, cache, arm, row.batch, forward) for arm, cache in caches(model, row.batch, row.tokens).items()}
        seconds = {arm: _compile(decoder) for arm, decoder in decoders.items()}
        times = in_turn({arm: decoder.timed for arm, decoder in decoders.items()}, 3, 8 if run.quick else 32)
    finally:
        torch._dynamo.reset()
    ms = {arm: summary(values) for arm, values in times.items()}
    floor = 1e3 * (weight_bytes(model) + page_bytes(model, row.batch, row.tokens)) / (1e9 * run.copy_gb_s)
    ours = ms["turboquant"]["median"]
    return {"ms": ms, "baseline": "static", "speedup": ms["static"]["median"] / ours, "floor_ms": floor, "over_floor": ours / floor, "compile_s": seconds}


def _compile(decoder: Decoder) -> float:
    """Seconds until the third step: compiled, recorded and replayed once."""
    begin = time.perf_counter()
    with attention(decoder.model, decoder.arm):
        for _ in range(3):
            decoder.step()
    synchronize(decoder.model.device)
    return round(time.perf_counter() - begin, 1)
