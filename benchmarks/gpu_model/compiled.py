# SPDX-License-Identifier: Apache-2.0
"""Decoding steps of fixed capacity under torch.compile with CUDA graphs: transformers' StaticCache, and ours.

The floor is what a step must read, the weights and the pages, at the rate of a copy of this run. A bare step of ours is one without
a history: what no cache can save.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch._inductor.config
from transformers import PreTrainedModel, StaticCache
from transformers.cache_utils import Cache

import turboquant

from . import allocator, fill
from .rows import Row
from .run import Run
from .steps import Decoder, attention, in_blocks, in_turn, next_token, of_all, ratio
from .subject import weight_bytes

LOOP = 32  # steps
ROOM = 64  # tokens behind the filled ones: StaticCache attends to all of its capacity


def caches(model: PreTrainedModel, batch: int, tokens: int) -> dict[str, Cache]:
    """Also a DynamicCache, for the check. All hold the same: what ours decodes to, of a TurboQuantCache filled with the same."""
    growing = turboquant.TurboQuantCache(model.config)
    ours = turboquant.TurboQuantStaticCache(model.config, max_tokens=tokens + ROOM)
    for cache in (growing, ours):
        fill.fill_in_one_call(model, cache, batch, tokens)
    theirs, dense = StaticCache(config=model.config, max_cache_len=tokens + ROOM), fill.dense_cache(model)
    for index, layer in enumerate(growing.layers):
        keys, values = layer.dequantize()
        for cache in (theirs, dense):
            cache.update(keys, values, index)
    return {"flash": dense, "static": theirs, "turboquant": ours}


def check(decoders: dict[str, Decoder]) -> dict:
    """Logits after the same token: ours may be as far from StaticCache's as twice that is from DynamicCache with flash attention.
    The DynamicCache, which takes as much memory as the StaticCache, goes before anything is compiled."""
    logits = {}
    for arm in list(decoders):
        decoder = decoders.pop(arm) if arm == "flash" else decoders[arm]
        with attention(decoder.model, arm):
            logits[arm] = decoder.logits().float()
        if arm == "flash":
            device = decoder.model.device
            del decoder
            allocator.settle(device)
    error, sdpa_error = (float((logits[arm] - logits["static"]).norm() / logits["static"].norm()) for arm in ("turboquant", "flash"))
    return {"error": error, "sdpa_error": sdpa_error, "right": error <= 2 * sdpa_error}


def compiled_step() -> Callable:
    """next_token in one graph, the choice of the token included."""

    def step(model: PreTrainedModel, tokens: torch.Tensor, cache: Cache) -> tuple[torch.Tensor, torch.Tensor]:
        return next_token(model, tokens, cache, likeliest)

    return torch.compile(step, mode="reduce-overhead", fullgraph=True)


def likeliest(logits: torch.Tensor) -> torch.Tensor:
    """argmax of the last dimension, kept, in two steps. torch's own, and the one that inductor makes, has a block a row: 31 to 36 us for
    rows of 128,256."""
    parts = logits.unflatten(-1, (math.gcd(logits.shape[-1], 256), -1))
    best, place = parts.max(-1)
    part = best.argmax(-1, keepdim=True)
    return part * parts.shape[-1] + place.gather(-1, part)


def page_bytes(model: PreTrainedModel, batch: int, tokens: int) -> int:
    """Of the codes of so many tokens, at 4 bits."""
    heads = fill.Heads(model, batch)
    page = turboquant.ops.page_bytes(heads.head_dim, 4, 4)
    return heads.layers * heads.kv_heads * batch * tokens * page // 64


def rewind(cache: Cache, tokens: int) -> None:
    if isinstance(cache, StaticCache):  # which has no crop
        for layer in cache.layers:
            layer.cumulative_length.fill_(tokens)
    else:
        cache.crop(tokens)


def loop(decoder: Decoder, tokens: int) -> float:
    """Milliseconds a step of LOOP, from `tokens` cached ones on."""
    rewind(decoder.cache, tokens)
    ms = decoder.loop(LOOP)
    if (length := int(decoder.cache.get_seq_length())) != tokens + LOOP:
        raise RuntimeError(f"{LOOP} steps after {tokens} tokens made {length}")
    return ms


def measure_joined(model: PreTrainedModel, row: Row, run: Run) -> dict:
    """Both arms with joined projections, and with inductor's switches for many small kernels: several in one launch, and each begun
    while the one before ends. The model stays so, hence the last row of a run."""
    switches = {"combo_kernels": True, "triton.enable_pdl": True}
    found = measure(turboquant.join_projections(model), row, replace(run, inductor=switches | run.inductor))
    return found | {"joined": True}


def measure(model: PreTrainedModel, row: Row, run: Run) -> dict:
    with torch._inductor.config.patch(run.inductor):
        found = _measure(model, row, run)
    return found | ({"inductor": sorted(run.inductor)} if run.inductor else {})


def _measure(model: PreTrainedModel, row: Row, run: Run) -> dict:
    choose = compiled_step()
    try:
        decoders = {
            arm: Decoder(model, cache, arm, row.batch, None if arm == "flash" else choose)
            for arm, cache in caches(model, row.batch, row.tokens).items()
        }
        right = check(decoders)
        steps = {arm: decoder.timed for arm, decoder in decoders.items()}
        in_turn(steps, 6, 0)  # these compile, record and replay for the first time
        # What was compiled stays valid, so torch.compile need not ask before each step whether anything that it traced has changed.
        with torch.compiler.set_stance(skip_guard_eval_unsafe=True):
            loops = in_blocks({arm: partial(loop, decoder, row.tokens) for arm, decoder in decoders.items()}, 1 if run.quick else 3)
            waited = in_blocks(steps, 1, 8, lead=1)
            bare = loop(decoders["turboquant"], 1)  # the same graph reads no pages
    finally:
        torch._dynamo.reset()
    ms = {arm: of_all(times) for arm, times in loops.items()}
    faster = ratio(loops["static"], loops["turboquant"])
    floor = 1e3 * (weight_bytes(model) + page_bytes(model, row.batch, row.tokens)) / (1e9 * run.copy_gb_s)
    return right | {
        "ms": ms, "baseline": "static", "ratio": faster, "speedup": faster["median"], "loop": LOOP,
        "waited_ms": {arm: of_all(times) for arm, times in waited.items()}, "floor_ms": floor,
        "over_floor": ms["turboquant"]["median"] / floor, "bare_ms": round(bare, 3),
    }  # fmt: skip
