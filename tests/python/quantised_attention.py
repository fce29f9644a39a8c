# SPDX-License-Identifier: Apache-2.0
"""An attention for tests: one pass over a whole text in which every query reads older tokens from a codec.

A query at position p sees its own key and value exactly, so it does the newest `recent` and the first `first` ones (the
fringe); all other older tokens as the codec gives them back. Nothing is hidden behind an exact prefill, and 1,024 tokens cost
one forward pass. The paper's codec is stated here on its own, in numpy and torch; the recipe's is the library's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import integrate, special
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from turboquant import ops

NAME = "quantised_in_one_pass"
PAGE_TOKENS = 64

# (layer, query [q_heads, tokens, head_dim], keys, values [kv_heads, tokens, head_dim]) -> keys, values as read back
Codec = Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class Study:
    codec: Codec
    first: int = 0
    recent: int = 0


_study: Study | None = None


def logits(model: torch.nn.Module, tokens: Tensor, study: Study | None) -> Tensor:
    """Of one text [tokens], [tokens, vocabulary]; without a study, plain attention."""
    global _study
    _study = study
    model.set_attn_implementation("sdpa" if study is None else NAME)
    try:
        with torch.no_grad():
            return model(input_ids=tokens[None], use_cache=False).logits[0]
    finally:
        _study = None
        model.set_attn_implementation("sdpa")


def _attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    assert attention_mask is None and query.shape[0] == 1, "one text, causal"
    out = attend(_study, module.layer_idx, query[0], key[0], value[0], scaling)
    return out.transpose(0, 1)[None], None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def attend(study: Study, layer: int, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """[q_heads, tokens, head_dim] each (keys and values: kv_heads)."""
    coded_keys, coded_values = study.codec(layer, query, keys, values)
    group = query.shape[0] // keys.shape[0]
    position = torch.arange(query.shape[1])
    age = position[:, None] - position
    coded, future = (age > study.recent) & (position >= study.first), age < 0
    out = torch.empty_like(query)
    for head in range(query.shape[0]):  # one at a time: the matrices stay small
        kv = head // group
        scores = query[head] @ keys[kv].T
        torch.where(coded, query[head] @ coded_keys[kv].T, scores, out=scores)
        weights = scores.mul_(scale).masked_fill_(future, float("-inf")).softmax(-1)
        torch.matmul(weights, values[kv], out=out[head])
        out[head] += weights.mul_(coded) @ (coded_values[kv] - values[kv])
    return out


def recipe(k_bits: int, v_bits: int) -> Codec:
    """The library's: the whole text encoded in one call, as a prefill is, and decoded from its pages."""

    def codec(layer: int, query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        heads, tokens, dim = keys.shape
        query, keys, values = (x.transpose(0, 1).contiguous() for x in (query, keys, values))
        key_xi, value_xi = (torch.stack([ops.random_signs(dim, (layer * 2 + kind) * heads + h) for h in range(heads)]) for kind in (0, 1))
        starts = torch.tensor([0, tokens], dtype=torch.int32)
        count = -(-tokens // PAGE_TOKENS)
        table = torch.arange(count, dtype=torch.int32)[None]
        before, after = (torch.tensor([n], dtype=torch.int32) for n in (0, tokens))
        pages = torch.zeros(count, heads, ops.page_bytes(dim, k_bits, v_bits), dtype=torch.uint8)
        base = ops.hadamard_base(dim) if ops.hadamard_base_size(dim) > 1 else None
        balance = ops.balance(query, keys, starts)
        ops.encode(keys, values, starts, table, before, None, pages, None, None, key_xi / balance, value_xi, base, k_bits, v_bits, 0)
        read = ops.decode(pages, table, after, None, None, None, key_xi * balance, value_xi, base, dim, k_bits, v_bits, 0, tokens)
        return read[0][0], read[1][0]

    return codec


def paper(k_bits: int, v_bits: int) -> Codec:
    """Algorithm 1 of arXiv 2504.19874: a dense random rotation, the unit vector's coordinates to the nearest Lloyd-Max
    centroid, the norm in fp32."""

    def codec(layer: int, query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return _paper_round_trip(keys, k_bits, 2 * layer), _paper_round_trip(values, v_bits, 2 * layer + 1)

    return codec


def _paper_round_trip(x: Tensor, bits: int, seed: int) -> Tensor:
    rotation = haar_rotation(x.shape[-1], seed)
    centroids = torch.from_numpy(lloyd_max(x.shape[-1], bits)).to(x.dtype)
    norm = x.norm(dim=-1, keepdim=True)
    y = (x / norm.clamp_min(torch.finfo(x.dtype).tiny)) @ rotation.T
    codes = torch.bucketize(y.contiguous(), (centroids[1:] + centroids[:-1]) / 2)
    return norm * (centroids[codes] @ rotation)


def haar_rotation(dim: int, seed: int) -> Tensor:
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))
    return torch.from_numpy((q * np.sign(np.diag(r))).astype(np.float32))


@functools.cache
def lloyd_max(dim: int, bits: int) -> np.ndarray:
    """Centroids of the coordinate of a uniform unit vector, by Lloyd's iteration over the whole of [-1, 1]."""
    x = np.linspace(-1.0, 1.0, 400_001)
    log = special.gammaln(dim / 2) - special.gammaln((dim - 1) / 2) - np.log(np.pi) / 2
    with np.errstate(divide="ignore"):
        density = np.exp(log + (dim - 3) / 2 * np.log1p(-(x**2)))
    mass = integrate.cumulative_trapezoid(density, x, initial=0.0)
    moment = integrate.cumulative_trapezoid(x * density, x, initial=0.0)
    levels = 2**bits
    # Start at equal shares of the mass.
    centroids = np.interp((np.arange(levels) + 0.5) / levels, mass, x)
    for _ in range(100_000):
        edges = np.concatenate([[-1.0], (centroids[1:] + centroids[:-1]) / 2, [1.0]])
        new = np.diff(np.interp(edges, x, moment)) / np.diff(np.interp(edges, x, mass))
        done = np.abs(new - centroids).max() < 1e-9
        centroids = new
        if done:
            return centroids
    raise AssertionError("Lloyd's iteration did not settle")
