# SPDX-License-Identifier: Apache-2.0
"""transformers' own QuantizedCache (4 bits, optimum-quanto), which dequantises the whole history each step, beside ours."""

from __future__ import annotations

from transformers import PreTrainedModel, QuantizedCache

import turboquant

from . import fill
from .rows import Row
from .run import Run
from .steps import Decoder, in_turn, summary


def measure(model: PreTrainedModel, row: Row, run: Run) -> dict:
    ours = turboquant.TurboQuantCache(model.config)
    fill.fill_ours(model, ours, row.batch, row.tokens)
    theirs = QuantizedCache(backend="quanto", config=model.config, nbits=4)
    fill.fill_with_the_same(theirs, ours)
    arms = {"quantized": Decoder(model, theirs, "quantized", row.batch), "turboquant": Decoder(model, ours, "turboquant", row.batch)}
    times = in_turn({name: decoder.timed for name, decoder in arms.items()}, *((1, 3) if run.quick else (2, 8)))
    ms = {name: summary(values) for name, values in times.items()}
    return {"ms": ms, "baseline": "quantized", "speedup": ms["quantized"]["median"] / ms["turboquant"]["median"]}
