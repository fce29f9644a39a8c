# SPDX-License-Identifier: Apache-2.0
"""Attention of a whole text at once, in which queries read older tokens as a codec gives them back.

Teacher-forced: each query sees what it would see if its token were decoded with the whole text before it in the cache, so
nothing hides behind an exact prefill and a text costs one forward pass. What is still seen in 16 bits is an `Exact`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from fidelity.codec import Codec, Layer

NAME = "fidelity"
# Queries at once. On a CPU their scores stay in the caches and keys after the block are never touched; a GPU wants few launches.
QUERY_BLOCK = {"cpu": 256, "cuda": 512}


@dataclass(frozen=True)
class Exact:
    """Which keys (or values) a query at position p reads in 16 bits instead of codes.

    The first `first`; the newest `recent` before its own, and its own (recent = -1: not even that); or with `block`, all
    from the last multiple of `block` on (KIVI fills a block in 16 bits, then codes it). Queries of the first `hold` tokens read
    all in 16 bits: a cache that codes these tokens at once, when there are that many.
    """

    first: int = 0
    recent: int = 0
    block: int = 0
    hold: int = 0

    def limit(self, query: Tensor) -> Tensor:
        """The first newest position that is exact, for positions of queries."""
        newest = query // self.block * self.block if self.block else query - self.recent
        return torch.where(query < self.hold, 0, newest)

    def reach(self) -> int:
        """How far before a query that can be, at most."""
        return self.block if self.block else max(self.recent, 0)

    def tokens(self) -> int:
        """16-bit tokens that a cache allocates for it."""
        return self.first + self.reach()


@dataclass
class Study:
    """One way to cache. `skip`: layers that stay in 16 bits."""

    codec: Codec
    keys: Exact = Exact()
    values: Exact = Exact()
    skip: frozenset[int] = frozenset()


@dataclass
class Recorder:
    """If given to `attending`, keeps each layer's inputs and output, on the model's device."""

    layers: list[tuple[torch.nn.Module, Layer, Tensor]] = field(default_factory=list)


_active: tuple[Study | None, Recorder | None] = (None, None)


@contextlib.contextmanager
def attending(model: torch.nn.Module, study: Study | None, recorder: Recorder | None = None) -> Iterator[None]:
    """The model attends through `study` inside; None: plainly, in the same arithmetic."""
    global _active
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    _active = (study, recorder)
    try:
        yield
    finally:
        _active = (None, None)
        model.set_attn_implementation(before)


@torch.no_grad()
def logits(model: torch.nn.Module, tokens: Tensor, study: Study | None, recorder: Recorder | None = None) -> Tensor:
    """Of one text [tokens]: [tokens, vocabulary]."""
    with attending(model, study, recorder):
        return model(input_ids=tokens[None].to(model.device), use_cache=False).logits[0]


def _attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    if attention_mask is not None or query.shape[0] != 1 or kwargs.get("sliding_window") or kwargs.get("softcap"):
        raise NotImplementedError("the harness attends to one text, causal, without window or softcap")
    study, recorder = _active
    layer = Layer(module.layer_idx, query[0].float(), key[0].float(), value[0].float(), scaling or query.shape[3] ** -0.5)
    out = attend(layer, study)
    if recorder is not None:
        recorder.layers.append((module, layer, out))
    return out.to(query.dtype).transpose(0, 1)[None], None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def attend(layer: Layer, study: Study | None) -> Tensor:
    """[q_heads, tokens, head_dim]."""
    if study is None or layer.index in study.skip:
        return _attend(layer, layer.keys, layer.values, Exact(), Exact())
    coded = study.codec(layer)
    return _attend(layer, coded.keys, coded.values, study.keys, study.values)


def _attend(layer: Layer, coded_keys: Tensor, coded_values: Tensor, keys: Exact, values: Exact) -> Tensor:
    kv_heads, tokens, dim = layer.keys.shape
    group = layer.query.shape[0] // kv_heads
    query = layer.query.view(kv_heads, group, tokens, dim)
    plain_keys, plain_values = layer.keys.half().float(), layer.values.half().float()
    if coded_keys is layer.keys:
        plain_keys, plain_values = layer.keys, layer.values
    out = torch.empty_like(query)
    step = QUERY_BLOCK[query.device.type]
    for begin in range(0, tokens, step):
        end = min(begin + step, tokens)
        position = torch.arange(begin, end, device=query.device)
        rows = query[:, :, begin:end].reshape(kv_heads, group * (end - begin), dim)
        scores = (rows @ coded_keys[:, :end].mT).view(kv_heads, group, end - begin, end)
        for low, high, exact in _exact_parts(keys, position, begin, end):
            patch = (rows @ plain_keys[:, low:high].mT).view(kv_heads, group, end - begin, high - low)
            torch.where(exact, patch, scores[..., low:high], out=patch)
            scores[..., low:high] = patch
        future = torch.arange(begin, end, device=query.device) > position[:, None]
        scores[..., begin:end].masked_fill_(future, float("-inf"))
        weights = scores.mul_(layer.scale).softmax(-1)
        block = weights.view(kv_heads, -1, end) @ coded_values[:, :end]
        for low, high, exact in _exact_parts(values, position, begin, end):
            share = (weights[..., low:high] * exact).reshape(kv_heads, -1, high - low)
            block += share @ (plain_values[:, low:high] - coded_values[:, low:high])
        out[:, :, begin:end] = block.view(kv_heads, group, end - begin, dim)
    return out.view(layer.query.shape)


def _exact_parts(kept: Exact, position: Tensor, begin: int, end: int) -> Iterator[tuple[int, int, Tensor]]:
    """For queries [begin, end): column ranges [low, high) with a mask [queries, high - low] of what is exact there; the ranges do not overlap."""
    limit = kept.limit(position)
    low = min(max(int(kept.limit(torch.tensor(begin))), kept.first), end)
    if kept.first:
        high = min(kept.first, end)
        yield 0, high, torch.ones(len(position), high, dtype=torch.bool, device=position.device)
    if low < end:
        columns = torch.arange(low, end, device=position.device)
        yield low, end, columns >= limit[:, None]
