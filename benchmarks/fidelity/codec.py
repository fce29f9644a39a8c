# SPDX-License-Identifier: Apache-2.0
"""A codec turns the keys and values of one layer into bytes and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layer:
    """What a layer's cache is given, fp32, of one text."""

    index: int
    query: Tensor  # [q_heads, tokens, head_dim]
    keys: Tensor  # [kv_heads, tokens, head_dim], after RoPE
    values: Tensor
    scale: float


@dataclass(frozen=True)
class Coded:
    keys: Tensor  # like Layer.keys, fp32, as read back
    values: Tensor
    nbytes: int  # of all that is stored for these tokens, in all heads


Codec = Callable[[Layer], Coded]

# [heads, tokens, head_dim] -> the stored tensors, and back
Encode = Callable[[Tensor], dict[str, Tensor]]
Decode = Callable[[dict[str, Tensor]], Tensor]


def exact(layer: Layer) -> Coded:
    """Loses nothing; for tests of the harness itself."""
    return Coded(layer.keys, layer.values, 4 * (layer.keys.numel() + layer.values.numel()))


def cast(dtype: torch.dtype) -> Codec:
    """A cache that keeps another floating-point type, out of range saturated."""
    limit = torch.finfo(dtype).max

    def codec(layer: Layer) -> Coded:
        stored = [x.clamp(-limit, limit).to(dtype) for x in (layer.keys, layer.values)]
        return Coded(stored[0].float(), stored[1].float(), sum(x.nbytes for x in stored))

    return codec


def separate(keys: tuple[Encode, Decode], values: tuple[Encode, Decode], slot_multiple: int = 1) -> Codec:
    """Keys and values coded apart. `slot_multiple`: bytes of a token in a head are rounded up to it."""

    def codec(layer: Layer) -> Coded:
        back, nbytes = [], 0
        for (encode, decode), x in ((keys, layer.keys), (values, layer.values)):
            stored = encode(x)
            nbytes += sum(tensor.nbytes for tensor in stored.values())
            back.append(decode(stored))
        slots = layer.keys.shape[0] * layer.keys.shape[1]
        if slot_multiple > 1:
            nbytes = slots * -(-nbytes // slots // slot_multiple) * slot_multiple
        return Coded(back[0], back[1], nbytes)

    return codec
