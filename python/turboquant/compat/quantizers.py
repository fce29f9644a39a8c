# SPDX-License-Identifier: Apache-2.0
"""The paper's two quantisers on tensors of vectors, with one index per coordinate instead of packed codes.

The arithmetic is in C++ (include/turboquant/codebook.h, quantizer.h); here codes are packed and unpacked.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from .. import ops


def solve_lloyd_max(
    d: int, bits: int, *, use_exact: bool = True, max_iter: int = 200, tol: float = 1e-10
) -> tuple[torch.Tensor, torch.Tensor]:
    """(centroids [2^bits], boundaries [2^bits - 1]) of the best quantiser for a coordinate of a unit vector in d dimensions.

    Solved to 1e-10 over the whole support, so `use_exact`, `max_iter` and `tol` are accepted and change nothing. float32.
    """
    centroids, boundaries = _codebook(d, bits)
    return centroids.float(), boundaries.float()


@lru_cache(maxsize=64)
def _codebook(d: int, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    centroids, boundaries, _ = ops.lloyd_max(d, bits)
    return centroids, boundaries


@dataclass
class LloydMaxCodebook:
    """Centroids [2^bits] and the boundaries [2^bits - 1] between their cells."""

    centroids: torch.Tensor
    boundaries: torch.Tensor
    bits: int
    dim: int

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """The index of each value's nearest centroid; a value on a boundary belongs to the upper cell."""
        return torch.bucketize(x, self.boundaries.to(x.device, x.dtype), right=True)

    def dequantize(self, indices: torch.Tensor) -> torch.Tensor:
        return self.centroids.to(indices.device)[indices]


def unpack_codes(codes: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """[..., bytes] of codes packed lowest bit first -> int64 [..., count]."""
    at = torch.arange(count, device=codes.device) * bits
    low = torch.nn.functional.pad(codes, (0, 1)).int()
    pair = low[..., at // 8] | low[..., at // 8 + 1] << 8
    return (pair >> (at % 8) & (1 << bits) - 1).long()


def pack_codes(indices: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse: [..., count] -> uint8 [..., ceil(bits * count / 8)]."""
    at = torch.arange(indices.shape[-1], device=indices.device) * bits
    size = (indices.shape[-1] * bits + 7) // 8
    shifted = (indices << at % 8).int()
    packed = torch.zeros(*indices.shape[:-1], size + 1, dtype=torch.int32, device=indices.device)
    packed.index_add_(-1, at // 8, shifted & 255).index_add_(-1, at // 8 + 1, shifted >> 8)
    return packed[..., :size].to(torch.uint8)


class TurboQuantMSE:
    """Algorithm 1 of the paper: rotate x / |x|, code each coordinate by the nearest Lloyd-Max centroid, keep |x|.

    The rotation is signs and a Hadamard matrix where `dim` has one, else (or with `haar`) a dense one, uniform over all.
    """

    def __init__(self, dim: int, bits: int, *, seed: int = 42, haar: bool = False) -> None:
        self.dim, self.bits, self.seed = dim, bits, seed
        self.haar = haar or not _has_hadamard(dim)
        self.codebook = LloydMaxCodebook(*solve_lloyd_max(dim, bits), bits=bits, dim=dim)

    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [..., dim] -> (indices int64 [..., dim], norms float32 [..., 1])."""
        codes, norms = ops.mse_quantize(_rows(x, self.dim).float(), self.bits, self.seed, self.haar)
        return unpack_codes(codes, self.bits, self.dim).view(x.shape), norms.view(*x.shape[:-1], 1)

    def dequantize(self, indices: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        """The vectors [..., dim] that the codes stand for, float32."""
        codes = pack_codes(_rows(indices, self.dim), self.bits)
        vectors = ops.mse_dequantize(codes, norms.reshape(-1).float(), self.dim, self.bits, self.seed, self.haar)
        return vectors.view(indices.shape)

    @property
    def rotation(self) -> torch.Tensor:
        """The orthogonal matrix R [dim, dim]: codes are of R x."""
        if self.haar:
            raise NotImplementedError(f"the dense rotation of dim={self.dim} stays inside the library")
        base = ops.hadamard_base(self.dim) if ops.hadamard_base_size(self.dim) > 1 else None
        columns = ops.rotate(torch.eye(self.dim)[:, None], ops.random_signs(self.dim, self.seed)[None], base)
        return columns[:, 0].T


class TurboQuantProd:
    """Algorithm 2 of the paper: bits - 1 of Algorithm 1, and a sign a coordinate of the projected residual.

    Inner products are estimated without bias, but with more variance than `TurboQuantMSE` of the same bits has error:
    for research, not for a cache.
    """

    def __init__(
        self, dim: int, bits: int, *, qjl_dim: int | None = None, seed: int = 42, haar: bool = False
    ) -> None:
        if bits < 2:
            raise ValueError(f"bits={bits}: TurboQuantProd needs at least 2, one of them for the residual's signs")
        if qjl_dim not in (None, dim):
            raise NotImplementedError(f"qjl_dim={qjl_dim}: only as many projections as dimensions ({dim}) are supported")
        self.dim, self.bits, self.seed, self.qjl_dim = dim, bits, seed, dim
        self.mse_quantizer = TurboQuantMSE(dim, bits - 1, seed=seed, haar=haar)
        self.haar = self.mse_quantizer.haar

    def quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [..., dim] -> (indices int64 [..., dim], norms [..., 1], signs +-1 [..., dim], residual norms [..., 1])."""
        codes, signs, norms, residuals = ops.prod_quantize(
            _rows(x, self.dim).float(), self.bits, self.seed, self.haar
        )
        one = (*x.shape[:-1], 1)
        return (
            unpack_codes(codes, self.bits - 1, self.dim).view(x.shape),
            norms.view(one),
            1.0 - 2.0 * unpack_codes(signs, 1, self.dim).view(x.shape),
            (norms * residuals).view(one),  # of x itself; the operator's are of x / |x|
        )

    def dequantize(
        self, indices: torch.Tensor, norms: torch.Tensor, qjl_signs: torch.Tensor, residual_norms: torch.Tensor
    ) -> torch.Tensor:
        """The vectors [..., dim] whose inner products are the estimates: unbiased, correction included."""
        flat_norms, residuals = norms.reshape(-1).float(), residual_norms.reshape(-1).float()
        vectors = ops.prod_dequantize(
            pack_codes(_rows(indices, self.dim), self.bits - 1),
            pack_codes(_rows((qjl_signs < 0).long(), self.dim), 1),
            flat_norms,
            torch.where(flat_norms > 0, residuals / flat_norms, 0.0),
            self.dim,
            self.bits,
            self.seed,
            self.haar,
        )
        return vectors.view(indices.shape)

    def estimate_inner_product(
        self,
        query: torch.Tensor,
        indices: torch.Tensor,
        norms: torch.Tensor,
        qjl_signs: torch.Tensor,
        residual_norms: torch.Tensor,
    ) -> torch.Tensor:
        """Unbiased estimates of <query, x>, query [..., dim] broadcast against the codes; [..., 1]."""
        vectors = self.dequantize(indices, norms, qjl_signs, residual_norms)
        return (query.float() * vectors).sum(dim=-1, keepdim=True)


def _rows(x: torch.Tensor, dim: int) -> torch.Tensor:
    if x.shape[-1] != dim:
        raise ValueError(f"the last dimension is {x.shape[-1]}, this quantizer's is {dim}")
    return x.reshape(-1, dim)


def _has_hadamard(dim: int) -> bool:
    try:
        return ops.hadamard_base_size(dim) > 0
    except NotImplementedError:
        return False
