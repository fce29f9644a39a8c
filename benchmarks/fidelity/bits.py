# SPDX-License-Identifier: Apache-2.0
"""Codes of 1 to 8 bits packed without a gap, lowest bit first, along the last dimension."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """[..., n] of 0 .. 2^bits - 1 -> uint8 [..., ceil(n bits / 8)]."""
    shift = torch.arange(bits, device=codes.device)
    planes = (codes.to(torch.uint8)[..., None] >> shift) & 1
    flat = planes.flatten(-2)
    flat = torch.nn.functional.pad(flat, (0, -flat.shape[-1] % 8))
    weights = (1 << torch.arange(8, device=codes.device)).to(torch.uint8)
    return (flat.unflatten(-1, (-1, 8)) * weights).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse: int64 [..., count]."""
    flat = ((packed[..., None] >> torch.arange(8, device=packed.device)) & 1).flatten(-2)[..., : count * bits]
    weights = 1 << torch.arange(bits, device=packed.device)
    return (flat.unflatten(-1, (count, bits)) * weights).sum(-1)
