# SPDX-License-Identifier: Apache-2.0
"""vLLM's --kv-cache-dtype int4_per_token_head (v1/attention/ops/triton_quant_kv/_packed_reshape.py): keys and values rotated by random
signs and a Sylvester matrix, then per token and head 16 levels between least and greatest, two codes a byte, and one fp32 scale whose
lowest four mantissa bits hold the integer zero point. d = 64: 72 bytes a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fidelity.bits import pack, unpack
from fidelity.codec import Codec, separate
from fidelity.peers.hadamard import rotate_blocks
from turboquant import ops

SEED = 0  # its own signs come from torch's generator; any will do


def int4_per_token_head() -> Codec:
    pair = (_encode, _decode)
    return separate(pair, pair)


def _signs(x: Tensor) -> Tensor:
    return ops.random_signs(x.shape[-1], SEED).to(x.device)


def _encode(x: Tensor) -> dict[str, Tensor]:
    x = rotate_blocks(x * _signs(x))
    least, most = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    scale = ((most - least) / 15).clamp_min(1e-6)
    zero = _half_up(-least / scale).clamp(0, 15)
    codes = _half_up(x * (1 / scale) + zero).clamp(0, 15)
    word = (scale.contiguous().view(torch.int32) & -16) | zero.to(torch.int32)
    return {"codes": pack(codes, 4), "scale": word}


def _decode(stored: dict[str, Tensor]) -> Tensor:
    word = stored["scale"]
    dim = stored["codes"].shape[-1] * 2
    vector = (unpack(stored["codes"], 4, dim) - (word & 15)).float() * word.view(torch.float32)
    return rotate_blocks(vector) * _signs(vector)


def _half_up(x: Tensor) -> Tensor:
    """To the nearest integer, halves away from zero."""
    return (x + torch.where(x >= 0, 0.5, -0.5)).trunc()
