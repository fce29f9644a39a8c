# SPDX-License-Identifier: Apache-2.0
"""KIVI (arXiv 2402.02750; jy-yuan/KIVI, quant/new_pack.py): keys per channel, values per token, uniform, fp16 scale and zero.

Keys: groups of `key_group` tokens of one channel; values: groups of `value_group` channels of one token. At d = 64 and 4 bits with
groups of 32: 32 + 8 bytes a key and a value, 80 a token. Codes are packed without a gap at 3 bits too, which its kernels do not offer.
A last incomplete group of tokens is coded as a group of its own.

As run, its newest tokens stay in 16 bits: of the keys those since the last multiple of 128, of the values the newest 128.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fidelity.attention import Exact
from fidelity.codec import Codec, separate
from fidelity.peers import uniform

RESIDUAL = 128
KEYS_AS_RUN, VALUES_AS_RUN = Exact(block=RESIDUAL), Exact(recent=RESIDUAL)


def kivi(bits: int, key_group: int = 32, value_group: int = 32) -> Codec:
    return separate(_keys(bits, key_group), _values(bits, value_group))


def _keys(bits: int, group: int):
    def encode(x: Tensor) -> dict[str, Tensor]:
        whole = x.shape[1] // group * group
        parts = {"whole": x[:, :whole].mT.unflatten(-1, (-1, group)), "rest": x[:, whole:].mT}
        stored = {}
        for name, part in parts.items():
            if part.numel():
                stored |= {f"{name} {key}": value for key, value in uniform.encode(part, bits).items()}
        stored["shape"] = torch.empty(0, *x.shape)  # no bytes: the cache knows its length
        return stored

    def decode(stored: dict[str, Tensor]) -> Tensor:
        tokens, parts = stored["shape"].shape[2], []
        for name, size in (("whole", group), ("rest", tokens % group)):
            part = {key.removeprefix(name + " "): value for key, value in stored.items() if key.startswith(name)}
            if part:
                back = uniform.decode(part, bits, size)
                parts.append((back.flatten(-2) if name == "whole" else back).mT)
        return torch.cat(parts, dim=1)

    return encode, decode


def _values(bits: int, group: int):
    def encode(x: Tensor) -> dict[str, Tensor]:
        return uniform.encode(x.unflatten(-1, (-1, group)), bits)

    def decode(stored: dict[str, Tensor]) -> Tensor:
        return uniform.decode(stored, bits, group).flatten(-2)

    return encode, decode
