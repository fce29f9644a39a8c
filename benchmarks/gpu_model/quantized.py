# SPDX-License-Identifier: Apache-2.0
"""transformers' own QuantizedCache (4 bits, optimum-quanto), which dequantises the whole history each step, beside ours.

optimum-quanto would first compile its CUDA extension, which takes minutes, most of them for matrix products that a cache has no use
for. Of the extension a cache needs the unpacking of codes alone; torch's operators do that here.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from transformers import PreTrainedModel, QuantizedCache

import turboquant

from . import fill
from .rows import Row
from .run import Run
from .steps import Decoder, in_turn, summary


def measure(model: PreTrainedModel, row: Row, run: Run) -> dict:
    ours = turboquant.TurboQuantCache(model.config)
    fill.fill_ours(model, ours, row.batch, row.tokens)
    if model.device.type == "cuda":
        _without_compiling()
    theirs = QuantizedCache(backend="quanto", config=model.config, nbits=4)
    fill.fill_with_the_same(theirs, ours)
    arms = {"quantized": Decoder(model, theirs, "quantized", row.batch), "turboquant": Decoder(model, ours, "turboquant", row.batch)}
    times = in_turn({name: decoder.timed for name, decoder in arms.items()}, *((1, 3) if run.quick else (2, 8)))
    ms = {name: summary(values) for name, values in times.items()}
    return {"ms": ms, "baseline": "quantized", "speedup": ms["quantized"]["median"] / ms["turboquant"]["median"]}


def _without_compiling() -> None:
    from optimum.quanto.library.extensions.cuda import ext

    ext._lib = SimpleNamespace(unpack=_unpack)


def _unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 codes of 8 / bits values each -> one value each, the low bits' first along the first dimension."""
    mask = (1 << bits) - 1
    return torch.cat([(packed >> shift) & mask for shift in range(0, 8, bits)])
