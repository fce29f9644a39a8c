# SPDX-License-Identifier: Apache-2.0
"""The longest context of one sequence that decodes beside the weights, found by trying: each try on an empty device.

A try fills a cache with random keys and values and really decodes. What counts is memory, so positions beyond what the model was
trained for are no obstacle here.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

CHUNK = 64 << 10  # tokens of a call, as a chunked prefill would bring them
DECODED = 2  # tokens, after the context
GRAIN = 128  # the answer is exact to one part in so many

Shapes = dict[int, tuple[int, int, int]]  # layer with keys and values -> (kv_heads, key head_dim, value head_dim)


def layer_shapes(model: PreTrainedModel) -> Shapes:
    """Of the layers that have keys and values, from a call with one token."""
    cache = DynamicCache(config=model.config)
    _decode(model, cache)
    kept = {i: (layer.keys, layer.values) for i, layer in enumerate(cache.layers) if getattr(layer, "keys", None) is not None}
    return {i: (keys.shape[1], keys.shape[3], values.shape[3]) for i, (keys, values) in kept.items()}


def bytes_a_token(shapes: Shapes, element_bytes: int) -> int:
    return sum(heads * (key + value) * element_bytes for heads, key, value in shapes.values())


def fits(
    model: PreTrainedModel,
    make_cache: Callable[[], Cache],
    attention: Callable[[], contextlib.AbstractContextManager],
    shapes: Shapes,
    tokens: int,
    chunk: int = CHUNK,
) -> bool:
    """Whether the memory suffices for a cache of `tokens` and a few more that are decoded."""
    try:
        with attention(), torch.no_grad():
            cache = make_cache()
            _decode(model, cache)  # states of layers that have no keys and values
            _fill(model, cache, shapes, tokens - 1, chunk)
            for _ in range(DECODED):
                logits = _decode(model, cache)
        if not bool(logits.isfinite().all()):
            raise RuntimeError(f"the logits after {tokens} tokens are not finite")
        return True
    except torch.cuda.OutOfMemoryError:
        return False


def _decode(model: PreTrainedModel, cache: Cache) -> torch.Tensor:
    tokens = torch.full((1, 1), 1, device=model.device)
    return model(input_ids=tokens, past_key_values=cache, use_cache=True).logits


def _fill(model: PreTrainedModel, cache: Cache, shapes: Shapes, tokens: int, chunk: int) -> None:
    """The same random chunk again and again, layer by layer within a call, as in a model."""
    count = min(chunk, tokens)
    drawn = {
        shape: tuple(torch.randn(1, shape[0], count, size, dtype=model.dtype, device=model.device) for size in shape[1:])
        for shape in set(shapes.values())
    }
    for start in range(0, tokens, chunk):
        count = min(chunk, tokens - start)
        for index, shape in shapes.items():
            cache.update(*(part[:, :, :count] for part in drawn[shape]), index)
            if hasattr(cache.layers[index], "flush"):
                cache.layers[index].flush()


def largest(suffices: Callable[[int], bool], low: int, high: int, step: int) -> int:
    """The largest multiple of `step` below `high` that suffices; 0: none does. Halves, from `low` on."""
    below, above = 0, max(2, high // step)
    first = max(1, low // step)
    below, above = (first, above) if suffices(first * step) else (0, first)
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if suffices(middle * step) else (below, middle)
    return below * step


def longest(
    model: PreTrainedModel,
    make_cache: Callable[[int], Cache],
    attention: Callable[[], contextlib.AbstractContextManager],
    shapes: Shapes,
    token_bytes: float,
    chunk: int = CHUNK,
    on_try: Callable[[], None] = lambda: None,
) -> int:
    """In tokens. `make_cache` takes the number to make room for; `token_bytes` is a guess of what one takes."""
    settle()
    most = int(torch.cuda.mem_get_info(model.device)[0] / token_bytes)
    step = max(64, most // GRAIN // 64 * 64)

    def suffices(tokens: int) -> bool:
        settle()
        on_try()
        return fits(model, lambda: make_cache(tokens + DECODED), attention, shapes, tokens, chunk)

    try:
        return largest(suffices, most * 3 // 4, most + 2 * step, step)
    finally:
        settle()


def settle() -> None:
    """Garbage is gone, and the allocator's cached blocks are given back."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
