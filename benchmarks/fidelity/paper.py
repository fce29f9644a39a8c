# SPDX-License-Identifier: Apache-2.0
"""The paper's quantisers (arXiv 2504.19874) as caches, with its dense rotation; the arithmetic is the library's.

MSE (Algorithm 1): indices of the rotated unit vector's coordinates, the norm in fp32.
Prod (Algorithm 2): one bit less of MSE, a sign a coordinate of the projected residual, both norms in fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fidelity.codec import Coded, Codec, Layer
from turboquant import ops


def mse(k_bits: int, v_bits: int, haar: bool = True) -> Codec:
    def one(x: Tensor, bits: int, seed: int) -> tuple[Tensor, int]:
        codes, norms = ops.mse_quantize(x, bits, seed, haar)
        return ops.mse_dequantize(codes, norms, x.shape[1], bits, seed, haar), codes.nbytes + norms.nbytes

    return _codec(one, k_bits, v_bits)


def prod(k_bits: int, v_bits: int, haar: bool = True) -> Codec:
    """Keys by Prod, whose inner products are unbiased; values by MSE, as in the paper."""

    def one(x: Tensor, bits: int, seed: int) -> tuple[Tensor, int]:
        if seed % 2:
            codes, norms = ops.mse_quantize(x, bits, seed, haar)
            return ops.mse_dequantize(codes, norms, x.shape[1], bits, seed, haar), codes.nbytes + norms.nbytes
        stored = ops.prod_quantize(x, bits, seed, haar)
        return ops.prod_dequantize(*stored, x.shape[1], bits, seed, haar), sum(t.nbytes for t in stored)

    return _codec(one, k_bits, v_bits)


def _codec(one, k_bits: int, v_bits: int) -> Codec:
    def codec(layer: Layer) -> Coded:
        back, nbytes = [], 0
        for which, (x, bits) in enumerate(((layer.keys, k_bits), (layer.values, v_bits))):
            rows = x.reshape(-1, x.shape[2]).cpu().contiguous()  # these operators are the CPU's
            y, stored = one(rows, bits, 2 * layer.index + which)
            back.append(y.view(x.shape).to(x.device))
            nbytes += stored
        return Coded(back[0], back[1], nbytes)

    return codec
