# SPDX-License-Identifier: Apache-2.0
"""The paper's quantisers (arXiv 2504.19874) as caches, with its dense rotation: the library's operators on a CPU, elsewhere the same in torch.

MSE (Algorithm 1): indices of the rotated unit vector's coordinates, the norm in fp32.
Prod (Algorithm 2): one bit less of MSE, a sign a coordinate of the projected residual, both norms in fp32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from fidelity.bits import pack
from fidelity.codec import Coded, Codec, Layer
from turboquant import ops

# x [n, dim], bits, seed -> x as read back, bytes stored
RoundTrip = Callable[[Tensor, int, int, bool], tuple[Tensor, int]]


def mse(k_bits: int, v_bits: int, haar: bool = True) -> Codec:
    def codec(layer: Layer) -> Coded:
        one = by_operators_mse if layer.keys.device.type == "cpu" else in_torch_mse
        return _both(layer, (one, one), (k_bits, v_bits), haar)

    return codec


def prod(k_bits: int, v_bits: int, haar: bool = True) -> Codec:
    """Keys by Prod, whose inner products are unbiased; values by MSE, as in the paper."""

    def codec(layer: Layer) -> Coded:
        pair = (by_operators_prod, by_operators_mse) if layer.keys.device.type == "cpu" else (in_torch_prod, in_torch_mse)
        return _both(layer, pair, (k_bits, v_bits), haar)

    return codec


def _both(layer: Layer, pair: tuple[RoundTrip, RoundTrip], bits: tuple[int, int], haar: bool) -> Coded:
    back, nbytes = [], 0
    for which, x in enumerate((layer.keys, layer.values)):
        y, stored = pair[which](x.reshape(-1, x.shape[2]).contiguous(), bits[which], 2 * layer.index + which, haar)
        back.append(y.view(x.shape))
        nbytes += stored
    return Coded(back[0], back[1], nbytes)


def by_operators_mse(x: Tensor, bits: int, seed: int, haar: bool) -> tuple[Tensor, int]:
    codes, norms = ops.mse_quantize(x, bits, seed, haar)
    return ops.mse_dequantize(codes, norms, x.shape[1], bits, seed, haar), codes.nbytes + norms.nbytes


def by_operators_prod(x: Tensor, bits: int, seed: int, haar: bool) -> tuple[Tensor, int]:
    stored = ops.prod_quantize(x, bits, seed, haar)
    return ops.prod_dequantize(*stored, x.shape[1], bits, seed, haar), sum(t.nbytes for t in stored)


def in_torch_mse(x: Tensor, bits: int, seed: int, haar: bool) -> tuple[Tensor, int]:
    norm = x.norm(dim=1, keepdim=True)
    dim = x.shape[1]
    return norm * _unit_mse(x / norm.clamp_min(1e-30), bits, seed, haar), len(x) * (_row_bytes(bits, dim) + 4)


def in_torch_prod(x: Tensor, bits: int, seed: int, haar: bool) -> tuple[Tensor, int]:
    norm, dim = x.norm(dim=1, keepdim=True), x.shape[1]
    unit = x / norm.clamp_min(1e-30)
    back = _unit_mse(unit, bits - 1, seed, haar)
    residual, projection = unit - back, _projection(dim, seed, haar, x.device)
    signs = torch.where(residual @ projection.T < 0, -1.0, 1.0)
    back = back + math.sqrt(math.pi / 2) / dim * residual.norm(dim=1, keepdim=True) * (signs @ projection)
    return norm * back, len(x) * (_row_bytes(bits - 1, dim) + _row_bytes(1, dim) + 8)


def _unit_mse(unit: Tensor, bits: int, seed: int, haar: bool) -> Tensor:
    centroids, boundaries = _codebook(unit.shape[1], bits, unit.device)
    rotation = _rotation(unit.shape[1], seed, haar, unit.device)
    return centroids[torch.bucketize(unit @ rotation.T, boundaries)] @ rotation


def _row_bytes(bits: int, dim: int) -> int:
    return -(-bits * dim // 8)


@functools.cache
def _codebook(dim: int, bits: int, device: torch.device) -> tuple[Tensor, Tensor]:
    centroids, boundaries, _ = ops.lloyd_max(dim, bits)
    return centroids.float().to(device), boundaries.float().to(device)


@functools.cache
def _rotation(dim: int, seed: int, haar: bool, device: torch.device) -> Tensor:
    """The library's own, read off its decoding, which is linear in the centroids: of codes 0, and of codes with one 1."""
    codes = pack(torch.cat([torch.zeros(1, dim), torch.eye(dim)]), 1)
    back = ops.mse_dequantize(codes, torch.ones(dim + 1), dim, 1, seed, haar).double()
    least, most = ops.lloyd_max(dim, 1)[0]
    return ((back[1:] - back[0]) / (most - least)).float().to(device)


@functools.cache
def _projection(dim: int, seed: int, haar: bool, device: torch.device) -> Tensor:
    """Read off like the rotation, from the signs' share of a decoded vector."""
    signs = pack(torch.cat([torch.zeros(1, dim), torch.eye(dim)]), 1)
    codes, ones = torch.zeros(dim + 1, _row_bytes(1, dim), dtype=torch.uint8), torch.ones(dim + 1)
    back = ops.prod_dequantize(codes, signs, ones, ones, dim, 2, seed, haar).double()
    return ((back[0] - back[1:]) * dim / (2 * math.sqrt(math.pi / 2))).float().to(device)
