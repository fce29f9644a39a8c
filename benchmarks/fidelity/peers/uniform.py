# SPDX-License-Identifier: Apache-2.0
"""Uniform quantisation between a group's least and greatest value, which most formats are built on."""

from __future__ import annotations

from torch import Tensor

from fidelity.bits import pack, unpack

# fp16's range for scales and zeros, and a floor so that constant groups divide by something.
LEAST_SCALE = 1e-8


def encode(groups: Tensor, bits: int) -> dict[str, Tensor]:
    """[..., group] -> codes packed, scale and least value in fp16; decided with the fp32 scale."""
    least = groups.amin(-1, keepdim=True)
    scale = ((groups.amax(-1, keepdim=True) - least) / (2**bits - 1)).clamp_min(LEAST_SCALE)
    codes = ((groups - least) / scale).round().clamp(0, 2**bits - 1)
    return {"codes": pack(codes, bits), "scale": scale.half(), "least": least.half()}


def decode(stored: dict[str, Tensor], bits: int, group: int) -> Tensor:
    return unpack(stored["codes"], bits, group).float() * stored["scale"].float() + stored["least"].float()
