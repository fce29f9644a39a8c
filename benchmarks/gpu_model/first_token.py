# SPDX-License-Identifier: Apache-2.0
"""Time to first token: a real prefill of random tokens into an empty cache, and the choice of one token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

import turboquant

from . import fill
from .rows import Row
from .run import Run
from .steps import Decoder, attention, in_turn, summary, timed

CACHES = {"default": fill.dense_cache, "flash": fill.dense_cache, "turboquant": lambda model: turboquant.TurboQuantCache(model.config)}


def prompt(model: PreTrainedModel, batch: int, tokens: int) -> torch.Tensor:
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator(model.device).manual_seed(1)
    return torch.randint(vocabulary, (batch, tokens), generator=generator, device=model.device)


def prefill(model: PreTrainedModel, cache: Cache | None, arm: str, ids: torch.Tensor) -> torch.Tensor:
    """[batch, 1] next tokens. Without a cache: what activations alone take."""
    decoder = Decoder(model, cache, arm, ids.shape[0])
    decoder.tokens = ids
    with attention(model, arm):
        decoder.step()
    return decoder.tokens


def measure(model: PreTrainedModel, row: Row, run: Run) -> dict:
    ids = prompt(model, row.batch, row.tokens)

    def timing(arm: str) -> Callable[[], float]:
        return lambda: timed(lambda: prefill(model, CACHES[arm](model), arm, ids), model.device)

    same = torch.equal(*(prefill(model, CACHES[arm](model), arm, ids) for arm in ("default", "turboquant")))
    ms = {name: summary(values) for name, values in in_turn({arm: timing(arm) for arm in CACHES}, 0, 2 if run.quick else 3).items()}
    best = min(("default", "flash"), key=lambda name: ms[name]["median"])
    return {"ms": ms, "baseline": best, "time_over": ms["turboquant"]["median"] / ms[best]["median"], "same_first_tokens": same}
