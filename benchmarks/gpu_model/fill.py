# SPDX-License-Identifier: Apache-2.0
"""Caches full of random keys and values, without a prefill.

Ours is filled first; the baseline then gets what ours decodes to, so that both steps compute the same thing and their logits
can be compared. A time does not depend on the numbers.
"""

from __future__ import annotations

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

FIRST_TOKENS = 1024  # of each sequence go through attention, so that balance and metric are done, as after one prompt of all tokens


class Heads:
    """Random queries, keys and values of a layer."""

    def __init__(self, model: PreTrainedModel, batch: int):
        text = model.config.get_text_config()
        self.q_heads, self.kv_heads = text.num_attention_heads, text.num_key_value_heads
        self.head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self.batch, self.dtype, self.device = batch, model.dtype, model.device
        self.layers = text.num_hidden_layers

    def draw(self, heads: int, tokens: int) -> torch.Tensor:
        return torch.randn(self.batch, heads, tokens, self.head_dim, dtype=self.dtype, device=self.device)

    def keys_and_values(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.draw(self.kv_heads, tokens), self.draw(self.kv_heads, tokens)


def attention_modules(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Of each layer: what attention functions take as their first argument."""
    found = [module for module in model.modules() if hasattr(module, "layer_idx") and hasattr(module, "is_causal")]
    return sorted(found, key=lambda module: module.layer_idx)


def fill_ours(model: PreTrainedModel, cache: Cache, batch: int, tokens: int) -> None:
    """The first tokens go through attention, which makes balance and metric; the rest is stored without."""
    heads, attend = Heads(model, batch), ALL_ATTENTION_FUNCTIONS["turboquant"]
    for index, module in enumerate(attention_modules(model)):
        first = min(FIRST_TOKENS, tokens)
        carriers = cache.update(*heads.keys_and_values(first), index)
        attend(module, heads.draw(heads.q_heads, first), *carriers, None, scaling=heads.head_dim**-0.5)
        if tokens > first:
            cache.update(*heads.keys_and_values(tokens - first), index)
            cache.layers[index].flush()


def fill_in_one_call(model: PreTrainedModel, cache: Cache, batch: int, tokens: int) -> None:
    """As a cache of fixed capacity must be, whose layers move together. The same numbers each time, and no more query heads
    than KV heads: attention's output is not looked at."""
    torch.manual_seed(0)
    heads, attend = Heads(model, batch), ALL_ATTENTION_FUNCTIONS["turboquant"]
    for index, module in enumerate(attention_modules(model)):
        carriers = cache.update(*heads.keys_and_values(tokens), index)
        attend(module, heads.draw(heads.kv_heads, tokens), *carriers, None, scaling=heads.head_dim**-0.5)


def fill_with_the_same(cache: Cache, ours: Cache) -> None:
    """The baseline's cache gets what ours decodes to, layer by layer."""
    for index, layer in enumerate(ours.layers):
        cache.update(*layer.dequantize(), index)


def fill_dense(model: PreTrainedModel, cache: Cache, batch: int, tokens: int) -> None:
    heads = Heads(model, batch)
    for index in range(heads.layers):
        cache.update(*heads.keys_and_values(tokens), index)


def dense_cache(model: PreTrainedModel) -> DynamicCache:
    return DynamicCache(config=model.config)
