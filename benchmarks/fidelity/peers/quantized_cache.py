# SPDX-License-Identifier: Apache-2.0
"""transformers' QuantizedCache with its default backend, by the real packages (transformers' QuantoQuantizedLayer, optimum-quanto): 4 or 2
bits, groups of 64 numbers along a token's vector for keys and values alike, fp16 scale and shift. d = 64, 4 bits: 72 bytes a token.

As run, up to 128 of the newest tokens stay in 16 bits; when they are 128, all tokens are read back and coded again (which is left out
here: codes of codes would change little).
"""

from __future__ import annotations

import functools
import types

import torch
from torch import Tensor

from fidelity.attention import Exact
from fidelity.codec import Coded, Codec, Layer

AS_RUN = Exact(block=128)


def quantized_cache(bits: int) -> Codec:
    def codec(layer: Layer) -> Coded:
        from transformers.cache_utils import QuantoQuantizedLayer

        cache = QuantoQuantizedLayer(nbits=bits)
        _read_without_compiling()
        back, nbytes = [], 0
        for x, axis in ((layer.keys, cache.axis_key), (layer.values, cache.axis_value)):
            stored = cache._quantize(x[None].half().cpu().contiguous(), axis)
            back.append(cache._dequantize(stored)[0].float().to(x.device))
            nbytes += _nbytes(stored)
        return Coded(back[0], back[1], nbytes)

    return codec


@functools.cache
def _read_without_compiling() -> None:
    """optimum-quanto unpacks on a CPU by C++ that it compiles when first asked, for minutes: here by what its torch statement of it says."""
    from optimum.quanto.library.extensions import get_extension

    get_extension("quanto_cpp")._lib = types.SimpleNamespace(unpack=_unpack)


def _unpack(packed: Tensor, bits: int) -> Tensor:
    return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])


def _nbytes(stored: object) -> int:
    parts: list[Tensor] = [stored._data._data, stored._scale, stored._shift]
    return sum(part.nbytes for part in parts)
