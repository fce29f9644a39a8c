# SPDX-License-Identifier: Apache-2.0
"""turbo-attn (PyPI, `tkv.TkvCodec`), the real package on the CPU: Hadamard rotation without signs, Lloyd-Max codes, bf16 norms (norm-correct
for keys). d = 64, 4 bits: 68 bytes a token. It serves with a ring of the newest 128 tokens in 16 bits.

"calibrated": per-channel pre-scales from calibration text, pairs of a key's channels alike (so that they commute with its RoPE layout),
shrunk by its own `shrink_per_channel_scales`. Its 2-D codebooks (vq2) exist in its CUDA kernels only.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fidelity.codec import Coded, Codec, Layer

RING = 128
Scales = dict[int, tuple[Tensor, Tensor]]  # layer -> of keys, of values, [head_dim] each


def turbo_attn(bits: int, scales: Scales | None = None) -> Codec:
    def codec(layer: Layer) -> Coded:
        tkv = _codec(layer.keys.shape[2], bits, layer.index if scales else -1)
        if scales:
            tkv.set_per_channel_scales(*scales[layer.index])
        back, nbytes = [], 0
        sides = ((layer.keys, tkv.compress_k, tkv.decompress_k), (layer.values, tkv.compress_v, tkv.decompress_v))
        for x, compress, decompress in sides:
            packed, norms = compress(x.cpu().flatten(0, 1).contiguous())
            back.append(decompress(packed, norms).view(x.shape).to(x.device))
            nbytes += packed.nbytes + norms.nbytes
        return Coded(back[0], back[1], nbytes)

    return codec


@functools.cache
def _codec(head_dim: int, bits: int, layer: int):
    import tkv

    return tkv.TkvCodec(head_dim=head_dim, bit_width=bits)
