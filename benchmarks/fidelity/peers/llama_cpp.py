# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's q8_0 and q4_0 as cache types (ggml-quants.c): blocks of 32 coordinates of a vector with one fp16 scale.

q8_0: scale = max|x| / 127, codes round(x / scale): 34 bytes a block. q4_0: scale = (the element of largest magnitude) / -8, codes
trunc(x / scale + 8.5), at most 15: 18 bytes a block. At d = 64, keys and values: 136 and 72 bytes a token.
With `hadamard`, keys and values are rotated by a Sylvester matrix of the largest power of two that divides d, queries alike, as
newer versions do for quantised caches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fidelity.bits import pack, unpack
from fidelity.codec import Codec, separate
from fidelity.peers.hadamard import rotate_blocks

BLOCK = 32


def q8_0(hadamard: bool = False) -> Codec:
    return _codec(_encode_q8, _decode_q8, hadamard)


def q4_0(hadamard: bool = False) -> Codec:
    return _codec(_encode_q4, _decode_q4, hadamard)


def _codec(encode, decode, hadamard: bool) -> Codec:
    if hadamard:  # its own inverse
        pair = (lambda x: encode(rotate_blocks(x)), lambda stored: rotate_blocks(decode(stored)))
    else:
        pair = (encode, decode)
    return separate(pair, pair)


def _encode_q8(x: Tensor) -> dict[str, Tensor]:
    blocks = x.unflatten(-1, (-1, BLOCK))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    codes = _away_from_zero(blocks * _inverse(scale)).to(torch.int8)
    return {"scale": scale.half(), "codes": codes}


def _decode_q8(stored: dict[str, Tensor]) -> Tensor:
    return (stored["codes"].float() * stored["scale"].float()).flatten(-2)


def _encode_q4(x: Tensor) -> dict[str, Tensor]:
    blocks = x.unflatten(-1, (-1, BLOCK))
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = largest / -8
    codes = (blocks * _inverse(scale) + 8.5).trunc().clamp(0, 15)
    return {"scale": scale.half(), "codes": pack(codes, 4)}


def _decode_q4(stored: dict[str, Tensor]) -> Tensor:
    return ((unpack(stored["codes"], 4, BLOCK) - 8).float() * stored["scale"].float()).flatten(-2)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)


def _away_from_zero(x: Tensor) -> Tensor:
    return (x.abs() + 0.5).floor().copysign(x)
