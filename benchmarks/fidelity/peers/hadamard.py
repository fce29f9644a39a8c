# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.cache
def sylvester(size: int) -> Tensor:
    """The orthogonal Sylvester-Hadamard matrix of a power of two."""
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / size**0.5


def rotate_blocks(x: Tensor) -> Tensor:
    """x [..., d] by Sylvester blocks of the largest power of two that divides d."""
    size = x.shape[-1] & -x.shape[-1]
    return (x.unflatten(-1, (-1, size)) @ sylvester(size).to(x.device)).flatten(-2)
