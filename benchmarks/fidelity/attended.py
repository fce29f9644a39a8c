# SPDX-License-Identifier: Apache-2.0
"""An idea (docs/experiments/0007): a balance that counts what is read from codes, by how much.

The balance weighs all of the first tokens' keys and queries alike. Here a key counts by the attention that it gets from queries which the default
fringe does not keep it exact for, and a query by what it pays to such keys. Only the vector s changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fidelity.codec import Layer

FIRST, RECENT = 4, 28  # the default fringe
PAGE = 64


def attended_balance(layer: Layer, tokens: int | None = None, sequence: int | None = None) -> Tensor:
    """[kv_heads, head_dim], from the first `tokens` (None: all), cut into sequences of `sequence` tokens."""
    heads, count, dim = layer.keys.shape
    count = min(tokens or count, count)
    sequence = min(sequence or count, count)
    keys_square = queries_square = torch.zeros(heads, dim, device=layer.keys.device)
    for begin in range(0, count - sequence + 1, sequence):
        part = slice(begin, begin + sequence)
        query, keys = layer.query[:, part].unflatten(0, (heads, -1)), layer.keys[:, part]
        weights = _weights(query * layer.scale, keys)
        mean = torch.cat([page.mean(1, keepdim=True).expand_as(page) for page in keys.split(PAGE, 1)], 1)
        keys_square = keys_square + ((keys - mean).square() * weights.sum((1, 2))[..., None]).sum(1)
        queries_square = queries_square + (query.square() * weights.sum(-1)[..., None]).sum((1, 2))
    sizes = [x.sqrt() for x in (keys_square, queries_square)]
    residual, query = (x.clamp_min(1e-3 * x.mean(-1, keepdim=True).clamp_min(1e-30)) for x in sizes)
    balance = (residual / query).sqrt()
    return balance / balance.mean(-1, keepdim=True)


def attended_balances(layers: Sequence[Layer], sequence: int) -> dict[int, Tensor]:
    return {layer.index: attended_balance(layer, sequence=sequence) for layer in layers}


def _weights(query: Tensor, keys: Tensor) -> Tensor:
    """[heads, group, queries, keys]: attention weights, 0 where the fringe would be read."""
    position = torch.arange(keys.shape[1], device=keys.device)
    age = position[:, None] - position
    weights = (query @ keys[:, None].mT).masked_fill(age < 0, -torch.inf).softmax(-1)
    return weights * ((age > RECENT) & (position >= FIRST))
