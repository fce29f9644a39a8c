# SPDX-License-Identifier: Apache-2.0
"""The longest context that a sequence decodes with beside the weights: found by trying, each try on an empty device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

import turboquant

from . import allocator, fill
from .rows import Row
from .run import Run
from .steps import Decoder, attention

CHUNK = 64 << 10  # tokens of a call, as a chunked prefill would bring them
DECODED = 2  # tokens, after the context


def dense(model: PreTrainedModel, tokens: int) -> Cache:
    return fill.dense_cache(model)


def preallocated(model: PreTrainedModel, tokens: int) -> Cache:
    return turboquant.TurboQuantCache(model.config, max_tokens=tokens + DECODED)


def growing(model: PreTrainedModel, tokens: int) -> Cache:
    return turboquant.TurboQuantCache(model.config)


ARMS: dict[str, tuple[str, Callable[[PreTrainedModel, int], Cache], int]] = {
    # the attention, the cache, tokens a call (0: all at once, since a DynamicCache of many calls would only be slower to fill)
    "flash": ("flash", dense, 0),
    "turboquant": ("turboquant", preallocated, CHUNK),
    "turboquant, growing": ("turboquant", growing, CHUNK),
}


def fits(model: PreTrainedModel, arm: str, tokens: int) -> bool:
    """Fills a cache with `tokens` and decodes; False where the device's memory does not suffice."""
    attends, make, chunk = ARMS[arm]
    try:
        cache = make(model, tokens)
        _fill(model, cache, tokens, chunk or tokens)
        decoder = Decoder(model, cache, attends, 1)
        with attention(model, attends):
            for _ in range(DECODED):
                logits = decoder.logits()
        if not bool(logits.isfinite().all()):
            raise RuntimeError(f"{arm}: the logits after {tokens} tokens are not finite")
        return True
    except torch.cuda.OutOfMemoryError:
        return False


def _fill(model: PreTrainedModel, cache: Cache, tokens: int, chunk: int) -> None:
    """The same random chunk again and again: the numbers do not matter here. Layer by layer within a call, as in a model."""
    heads = fill.Heads(model, 1)
    keys, values = heads.keys_and_values(min(chunk, tokens))
    for start in range(0, tokens, chunk):
        count = min(chunk, tokens - start)
        for index in range(heads.layers):
            cache.update(keys[:, :, :count], values[:, :, :count], index)
            if isinstance(cache, turboquant.TurboQuantCache):
                cache.layers[index].flush()


def largest(suffices: Callable[[int], bool], low: int, high: int, step: int) -> int:
    """The largest multiple of `step` that suffices, 0 if `low` does not; `high` is taken not to. Halves."""
    below, above = max(1, low // step), max(2, high // step)
    if not suffices(below * step):
        if below == 1:
            return 0
        below, above = 0, below
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if suffices(middle * step) else (below, middle)
    return below * step


def measure(model: PreTrainedModel, row: Row, run: Run) -> dict:
    free = torch.cuda.mem_get_info(model.device)[0] if model.device.type == "cuda" else 1 << 20
    heads = fill.Heads(model, 1)
    bytes_16_bit = 4 * heads.layers * heads.kv_heads * heads.head_dim
    found = {}
    for arm in ARMS:
        per_token = bytes_16_bit if arm == "flash" else bytes_16_bit * 17 // 64
        most = free // per_token
        step = max(64, most // (64 if run.quick else 256) // 64 * 64)

        def suffices(tokens: int, arm: str = arm) -> bool:
            allocator.settle(model.device)
            return fits(model, arm, tokens)

        found[arm] = largest(suffices, most * 3 // 4, most + step, step)
        allocator.settle(model.device)
    ours = {arm: count for arm, count in found.items() if arm != "flash"}
    ratios = {arm: count / found["flash"] if found["flash"] else None for arm, count in ours.items()}
    return {"longest": found, "ratios": ratios, "length_ratio": max(filter(None, ratios.values()), default=None)}
