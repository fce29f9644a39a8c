# SPDX-License-Identifier: Apache-2.0
"""Codes, scales and centres out of pages, one number per tensor element: for inspection, not for speed.

Written from the comment in include/turboquant/format.h (docs/format.md), independently of src/core/layout.h.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

PAGE_TOKENS = 64
# Centroids of the format, by magnitude index; K at 4 bits and V at 4 bits differ.
_KEY = {4: (6, 18, 30, 43, 57, 73, 93, 122), 3: (13, 40, 71, 113), 2: (37, 123)}
_VALUE = {**_KEY, 4: (5.5, 17.5, 29.5, 42.5, 56.5, 72.5, 92.5, 121.5)}


def centroids(bits: int, *, keys: bool) -> Tensor:
    """float32 [2^bits], ascending: what an index of `indices` stands for, in units of its token's scale."""
    magnitudes = torch.tensor((_KEY if keys else _VALUE)[bits], dtype=torch.float32)
    return torch.cat([-magnitudes.flip(0), magnitudes])


def indices(pages: Tensor, head_dim: int, bits: int, *, keys: bool, offset: int) -> Tensor:
    """pages uint8 [..., page_bytes] -> uint8 [..., 64, head_dim], ascending as in `centroids`."""
    read = _key_bits if keys else _value_bits
    if bits == 3:
        magnitude = _take(pages, offset, *read(head_dim, 2), 2)
        negative = _take(pages, offset + 16 * head_dim, *read(head_dim, 1), 1)
    else:
        code = _take(pages, offset, *read(head_dim, bits), bits)
        magnitude, negative = code & (1 << bits - 1) - 1, code >> bits - 1
    half = 1 << bits - 1
    return torch.where(negative == 1, half - 1 - magnitude, half + magnitude)


def scales(pages: Tensor, offset: int) -> Tensor:
    """float32 [..., 64] as stored over 64; a key's sign says that its reference is zero."""
    stored = pages[..., offset : offset + 2 * PAGE_TOKENS].contiguous().view(torch.float16).float() / 64
    token = torch.arange(PAGE_TOKENS, device=pages.device)
    return stored[..., 8 * (token % 8) + token // 8]


def centre(pages: Tensor, head_dim: int, offset: int) -> Tensor:
    """float32 [..., head_dim]: the K centre of each page, in the rotated domain."""
    row = pages[..., offset : offset + head_dim].view(torch.int8).float()
    step = pages[..., offset + head_dim : offset + head_dim + 2].contiguous().view(torch.float16).float()
    return row * step


def _take(pages: Tensor, offset: int, byte: Tensor, shift: Tensor, bits: int) -> Tensor:
    return pages[..., offset + byte.to(pages.device)] >> shift.to(pages.device) & (1 << bits) - 1


def _grid(head_dim: int) -> tuple[Tensor, Tensor]:
    return torch.arange(PAGE_TOKENS)[:, None], torch.arange(head_dim)[None, :]


def _nibble_strided(first_nibble: Tensor, codes: Tensor | int, bits: int, code: Tensor) -> tuple[Tensor, Tensor]:
    nibbles = codes * bits // 4
    nibble = first_nibble + code % nibbles
    return nibble // 2, (nibble % 2 * 4 + code // nibbles * bits).to(torch.uint8)


@lru_cache
def _key_bits(head_dim: int, bits: int) -> tuple[Tensor, Tensor]:
    """(byte, shift) [64, head_dim] of each code in a K area of 1, 2 or 4 bits."""
    token, coordinate = _grid(head_dim)
    first, width = torch.zeros_like(coordinate), torch.zeros_like(coordinate)
    at, plane = 0, 128
    while at < head_dim:
        while head_dim - at < plane:
            plane //= 2
        first[:, at : at + plane], width[:, at : at + plane] = at, plane
        at += plane
    r = coordinate - first
    code = r // 32 * 8 + r % 32 // 16 * 4 + r % 4
    codes = width // 4
    chunk = r % 16 // 4
    return _nibble_strided((first * PAGE_TOKENS + token * width + chunk * codes) * bits // 4, codes, bits, code)


@lru_cache
def _value_bits(head_dim: int, bits: int) -> tuple[Tensor, Tensor]:
    """(byte, shift) [64, head_dim] of each code in a V area of 1, 2 or 4 bits."""
    token, coordinate = _grid(head_dim)
    block, lane = coordinate // 32, coordinate % 8 * 4 + token % 8 // 2
    units = torch.where(head_dim - 32 * block >= 32, 4, 2)
    unit = 128 * block + lane * units + coordinate % 32 // 8
    half, code = token // 32, token % 2 * 4 + token % 32 // 8
    if bits == 4:
        return _nibble_strided((4 * head_dim * half + unit) * 8, 8, 4, code.expand(-1, head_dim))
    return _nibble_strided(unit * 4 * bits, 16, bits, (8 * half + code).expand(-1, head_dim))
