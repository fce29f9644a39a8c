# SPDX-License-Identifier: Apache-2.0
"""vLLM's --kv-cache-dtype turboquant_* (vllm/model_executor/layers/quantization/turboquant, v1/attention/ops/triton_turboquant_store.py).

Keys: x / (|x| + 1e-8) rotated by a Sylvester matrix without signs; indices into Lloyd-Max centroids of N(0, 1/d), which its solver
integrates with 200 trapezoids a cell over +-10.5 sigma; |x| in fp16; "nc": the centroid vector is brought back to length 1 when read.
k8v4 keeps keys in fp8 e4m3 instead. Values: uniform between least and greatest of the token, fp16 scale and zero.
A slot (a token in a head) is rounded up to an even number of bytes; d = 64: k8v4 100, 4bit_nc 70, k3v4_nc 62, 3bit_nc 54.

As run, the first and the last two layers of a dense model stay in 16 bits.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from fidelity.bits import pack, unpack
from fidelity.codec import Codec, separate
from fidelity.peers import uniform
from fidelity.peers.hadamard import rotate_blocks

PRESETS = {"k8v4": (8, 4), "4bit_nc": (4, 4), "k3v4_nc": (3, 4), "3bit_nc": (3, 3)}
FP8_MAX = 448.0


def vllm_turboquant(preset: str) -> Codec:
    key_bits, value_bits = PRESETS[preset]
    return separate(_fp8() if key_bits == 8 else _mse(key_bits), _uniform(value_bits), slot_multiple=2)


def skipped_layers(count: int) -> frozenset[int]:
    n = min(2, count // 2)
    return frozenset([*range(n), *range(count - n, count)])


def _fp8():
    return (lambda x: {"codes": x.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)}, lambda stored: stored["codes"].float())


def _mse(bits: int):
    def encode(x: Tensor) -> dict[str, Tensor]:
        levels = torch.tensor(centroids(x.shape[-1], bits), device=x.device)
        norm = x.norm(dim=-1, keepdim=True)
        unit = rotate_blocks(x / (norm + 1e-8))
        codes = torch.bucketize(unit, (levels[1:] + levels[:-1]) / 2, right=True)
        return {"codes": pack(codes, bits), "norm": norm.half()}

    def decode(stored: dict[str, Tensor]) -> Tensor:
        dim = stored["codes"].shape[-1] * 8 // bits
        levels = torch.tensor(centroids(dim, bits), device=stored["codes"].device)
        vector = levels[unpack(stored["codes"], bits, dim)]
        return rotate_blocks(vector / vector.norm(dim=-1, keepdim=True)) * stored["norm"].float()

    return encode, decode


def _uniform(bits: int):
    return (lambda x: uniform.encode(x, bits), lambda stored: uniform.decode(stored, bits, stored["codes"].shape[-1] * 8 // bits))


@functools.cache
def centroids(dim: int, bits: int) -> tuple[float, ...]:
    """Its solver, step for step: trapezoids of x N(x) and N(x) in each cell, outer cells to 10.5 sigma, from even levels on 3.5 sigma."""
    sigma = 1 / math.sqrt(dim)
    low, high, count = -3.5 * sigma, 3.5 * sigma, 2**bits
    levels = torch.tensor([low + (high - low) * (i + 0.5) / count for i in range(count)], dtype=torch.float64)
    ends = torch.tensor([3 * low, 3 * high], dtype=torch.float64)
    for _ in range(200):
        edges = torch.cat([ends[:1], (levels[1:] + levels[:-1]) / 2, ends[1:]])
        x = edges[:-1, None] + (edges[1:] - edges[:-1])[:, None] * torch.linspace(0, 1, 201, dtype=torch.float64)
        density = torch.exp(-(x**2) / (2 * sigma**2))
        new = torch.trapezoid(x * density, x) / torch.trapezoid(density, x)
        moved = (new - levels).abs().max()
        levels = new
        if moved < 1e-10:
            break
    return tuple(levels.float().tolist())
