# SPDX-License-Identifier: Apache-2.0
"""The paper's two algorithms on vectors (part of `turboquant.ops`).

A quantizer is named by (dim, bits, seed, haar): the same four decode what they encoded. It is built at first
use and kept. ``haar=False`` rotates by signs and Hadamard, for the dims of ``hadamard_base``; ``haar=True`` by
a dense random matrix, for any dim from 2 to 1024. ``bits`` is 1 to 8. Tensors are contiguous and on the CPU.
Codes are packed, code 0 in the lowest bits of a row's first byte, rows padded to whole bytes. Zero decodes to
zero; a vector with NaN or infinity decodes to NaN and touches no other.
"""

import torch
from torch import Tensor

from . import _fake  # noqa: F401  registers torch.ops.turboquant
from ._errors import call

_ops = torch.ops.turboquant


def lloyd_max(dim: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """The scalar quantiser of least squared error for a coordinate of a random unit vector of `dim` dimensions.

    Returns float64 centroids ``[2^bits]`` and boundaries ``[2^bits - 1]``, ascending, and the mean squared
    error of a whole unit vector as a float64 scalar tensor.
    """
    return call(_ops.lloyd_max.default, dim, bits)


def mse_quantize(
    x: Tensor, bits: int, seed: int, haar: bool = False, norm_correct: bool = False
) -> tuple[Tensor, Tensor]:
    """Algorithm 1: x float32 ``[n, dim]`` to codes uint8 ``[n, ceil(bits * dim / 8)]`` and norms float32 ``[n]``.

    With ``norm_correct``, decoded vectors have exactly the norms of the originals.
    """
    return call(_ops.mse_quantize.default, x, bits, seed, haar, norm_correct)


def mse_dequantize(
    codes: Tensor, norms: Tensor, dim: int, bits: int, seed: int, haar: bool = False, norm_correct: bool = False
) -> Tensor:
    """The float32 ``[n, dim]`` vectors that ``mse_quantize`` with the same options coded."""
    return call(_ops.mse_dequantize.default, codes, norms, dim, bits, seed, haar, norm_correct)


def prod_quantize(x: Tensor, bits: int, seed: int, haar: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Algorithm 2, for unbiased inner products: x float32 ``[n, dim]`` to

    codes uint8 ``[n, ceil((bits - 1) * dim / 8)]``, signs of the projected residual uint8 ``[n, ceil(dim / 8)]``
    (a set bit is negative), norms float32 ``[n]`` and residual norms float32 ``[n]``, of x / |x|.
    """
    return call(_ops.prod_quantize.default, x, bits, seed, haar)


def prod_dequantize(
    codes: Tensor,
    signs: Tensor,
    norms: Tensor,
    residual_norms: Tensor,
    dim: int,
    bits: int,
    seed: int,
    haar: bool = False,
) -> Tensor:
    """The float32 ``[n, dim]`` vectors whose inner products are the unbiased estimates."""
    return call(_ops.prod_dequantize.default, codes, signs, norms, residual_norms, dim, bits, seed, haar)


def prod_inner_product(
    queries: Tensor,
    codes: Tensor,
    signs: Tensor,
    norms: Tensor,
    residual_norms: Tensor,
    bits: int,
    seed: int,
    haar: bool = False,
) -> Tensor:
    """Unbiased estimates ``[m, n]`` of <query, x>, queries float32 ``[m, dim]``, without decoding."""
    return call(_ops.prod_inner_product.default, queries, codes, signs, norms, residual_norms, bits, seed, haar)
