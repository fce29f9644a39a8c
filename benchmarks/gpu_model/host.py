# SPDX-License-Identifier: Apache-2.0
"""Host time of one layer's cache update and attention in eager mode, over short sequences: the device has next to nothing to do."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import turboquant

from . import fill
from .rows import Row
from .run import Run
from .steps import attention, in_turn, summary, synchronize


def layer_calls(model: PreTrainedModel, cache: Cache, arm: str, batch: int) -> Callable[[], float]:
    """All layers' update and attention of one token, as the model calls them: microseconds a layer, of the CPU's clock."""
    heads = fill.Heads(model, batch)
    attend = ALL_ATTENTION_FUNCTIONS[{"flash": "sdpa"}.get(arm, arm)]
    # As projections leave them: [batch, tokens, heads, head_dim], transposed.
    query, key, value = (heads.draw(1, count).transpose(1, 2) for count in (heads.q_heads, heads.kv_heads, heads.kv_heads))
    modules = fill.attention_modules(model)

    def run() -> float:
        with attention(model, arm):
            synchronize(model.device)
            begin = time.perf_counter()
            for index, module in enumerate(modules):
                keys, values = cache.update(key, value, index)
                attend(module, query, keys, values, None, dropout=0.0, scaling=module.scaling)
            taken = time.perf_counter() - begin
            synchronize(model.device)
        return 1e6 * taken / len(modules)

    return run


def measure(model: PreTrainedModel, row: Row, run: Run) -> dict:
    ours = turboquant.TurboQuantCache(model.config, max_tokens=row.tokens + 1024)
    fill.fill_ours(model, ours, row.batch, row.tokens)
    dense = fill.dense_cache(model)
    fill.fill_with_the_same(dense, ours)
    arms = {arm: layer_calls(model, cache, arm, row.batch) for arm, cache in (("flash", dense), ("turboquant", ours))}
    with torch.no_grad():
        us = {name: summary(values) for name, values in in_turn(arms, 20, 50 if run.quick else 200).items()}
    return {"us": us, "baseline": "flash", "host_share": us["turboquant"]["median"] / us["flash"]["median"]}
