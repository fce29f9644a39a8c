# SPDX-License-Identifier: Apache-2.0
"""Distortion of the two quantisers on random unit vectors, by the library's operators (above their 1,024 dimensions by the same steps in
torch, with the codebook of 1,024 scaled: the laws differ by less than 1e-3 there), beside what theory says.

MSE: E|x - x^|^2 against the Lloyd-Max error of the law and the paper's bounds (bounds.py). Inner products with random unit y:
d E[(<x,y> - <x^,y>)^2], for Prod against the paper's bounds too, and the bias as the slope of <x^,y> on <x,y>, 1 for Prod and 1 - D_b for MSE.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fidelity.reproduce import bounds
from turboquant import ops

DIMS = (64, 128, 200, 1536)
BITS = (1, 2, 3, 4, 5)
LARGEST_DIM = 1024
VECTORS = {64: 20_000, 128: 20_000, 200: 10_000, 1536: 1_000}


def measure(dims=DIMS, bits=BITS, seed: int = 0) -> list[dict]:
    return [_row(d, b, kind, seed) for d in dims for b in bits for kind in ("mse", "prod") if kind == "mse" or b > 1]


def _row(dim: int, bits: int, kind: str, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.nn.functional.normalize(torch.randn(VECTORS[dim], dim, generator=generator, dtype=torch.float64), dim=1) for _ in "xy")
    haar = dim > LARGEST_DIM or ops_have_no_hadamard(dim)
    back = _round_trip(x.float(), bits, kind, haar).double()
    errors = (x - back).square().sum(1)
    true, estimate = (x * y).sum(1), (back * y).sum(1)
    slope = float((true * estimate).sum() / true.square().sum())
    squared = dim * (true - estimate).square()
    row = {
        "dim": dim, "bits": bits, "quantiser": kind, "vectors": len(x), "rotation": "haar" if haar else "hadamard",
        "mse": float(errors.mean()), "mse_standard_error": _standard_error(errors),
        "inner_product_error": float(squared.mean()), "inner_product_standard_error": _standard_error(squared),
        "inner_product_slope": slope, "inner_product_bias": float((estimate - true).mean()),
    }  # fmt: skip
    row["lower_bound"], row["upper_bound"] = bounds.error(bits) if kind == "mse" else bounds.inner_product(bits)
    code = bits if kind == "mse" else bits - 1
    distortion = _codebook(dim, code)[2]
    row["theory_mse"] = distortion if kind == "mse" else None
    row["theory_inner_product_error"] = distortion if kind == "mse" else (math.pi / 2 - 1 / dim) * distortion
    row["theory_slope"] = 1 - distortion if kind == "mse" else 1.0
    return row


def _round_trip(x: Tensor, bits: int, kind: str, haar: bool) -> Tensor:
    if x.shape[1] > LARGEST_DIM:
        return _in_torch(x, bits, kind)
    if kind == "mse":
        return ops.mse_dequantize(*ops.mse_quantize(x, bits, 1, haar), x.shape[1], bits, 1, haar)
    return ops.prod_dequantize(*ops.prod_quantize(x, bits, 1, haar), x.shape[1], bits, 1, haar)


def _in_torch(x: Tensor, bits: int, kind: str) -> Tensor:
    dim, generator = x.shape[1], torch.Generator().manual_seed(1)
    q, r = torch.linalg.qr(torch.randn(dim, dim, generator=generator))
    rotation = q * r.diagonal().sign()
    centroids, boundaries, _ = _codebook(dim, bits if kind == "mse" else bits - 1)
    back = centroids[torch.bucketize(x @ rotation, boundaries)] @ rotation.T
    if kind == "mse":
        return back
    residual, projection = x - back, torch.randn(dim, dim, generator=generator)
    signs = (residual @ projection.T).sign()
    return back + math.sqrt(math.pi / 2) / dim * residual.norm(dim=1, keepdim=True) * (signs @ projection)


def _codebook(dim: int, bits: int) -> tuple[Tensor, Tensor, float]:
    centroids, boundaries, distortion = ops.lloyd_max(min(dim, LARGEST_DIM), bits)
    scale = (min(dim, LARGEST_DIM) / dim) ** 0.5
    return (scale * centroids).float(), (scale * boundaries).float(), float(distortion)


def ops_have_no_hadamard(dim: int) -> bool:
    try:
        return ops.hadamard_base_size(dim) == 0
    except NotImplementedError:
        return True


def _standard_error(x: Tensor) -> float:
    return float(x.std() / len(x) ** 0.5)
