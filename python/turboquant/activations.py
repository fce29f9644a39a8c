# SPDX-License-Identifier: Apache-2.0
"""Queries, keys and values of a model over a text, as its attention layers get them: what a cache would be given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from .attention import enable, turboquant_attention

NAME = "turboquant_observe"


@dataclass(frozen=True)
class Activations:
    """Of one layer and one text."""

    index: int
    query: Tensor  # [q_heads, tokens, head_dim]
    keys: Tensor  # [kv_heads, tokens, head_dim]
    values: Tensor
    scale: float
    window: int  # 0: none
    softcap: float


_on_layer: Callable[[Activations], None] | None = None


@torch.no_grad()
def observe(model: PreTrainedModel, tokens: Tensor, on_layer: Callable[[Activations], None]) -> None:
    """Runs the model over `tokens` [count] and calls `on_layer` in each attention layer, one after the other; what it does not
    keep is freed. Layers of a sliding window are shown too."""
    global _on_layer
    before = model.config.get_text_config(decoder=True)._attn_implementation
    enable(model, NAME)
    _on_layer = on_layer
    try:
        model(input_ids=tokens[None].to(model.device), use_cache=False)
    finally:
        _on_layer = None
        enable(model, before)


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0,
    scaling: float | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    scale = query.shape[3] ** -0.5 if scaling is None else float(scaling)
    window, softcap = int(kwargs.get("sliding_window") or 0), float(kwargs.get("softcap") or 0.0)
    if _on_layer is not None:
        _on_layer(Activations(module.layer_idx, query[0], key[0], value[0], scale, window, softcap))
    return turboquant_attention(module, query, key, value, attention_mask, dropout, scaling, **kwargs)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
