# SPDX-License-Identifier: Apache-2.0
"""Attention over plain tensors with everything models ask for: masks, softcap, sinks, a window.

For layers that are not compressed, for the first prefill, and for masks that `attend` does not know.
"""

from __future__ import annotations

import torch

SCORE_ELEMENTS = 1 << 24  # scores held at once, fp32: 64 MB


def dense_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    window: int = 0,
    causal: bool = True,
    dropout: float = 0.0,
) -> torch.Tensor:
    """query [batch, q_heads, tokens, head_dim], key and value [batch, kv_heads, keys, head_dim] -> like query.

    `mask` [batch or 1, q_heads or 1, tokens, keys], bool (True: visible) or added, says alone what is seen;
    without it, the last query sees all keys, each earlier one a key less (`causal`), and `window` applies.
    A query that sees nothing gets zeros. Scores and softmax in fp32, `tokens` cut into blocks.
    """
    batch, heads, tokens, _ = query.shape
    keys = key.shape[2]
    groups = heads // key.shape[1]
    block = max(1, min(tokens, SCORE_ELEMENTS // max(1, batch * heads * keys)))
    out = torch.empty((*query.shape[:3], value.shape[3]), dtype=query.dtype, device=query.device)
    for begin in range(0, tokens, block):
        end = min(tokens, begin + block)
        rows = query[:, :, begin:end].reshape(batch, key.shape[1], groups * (end - begin), query.shape[3])
        scores = (rows @ key.transpose(2, 3)).float().view(batch, heads, end - begin, keys) * scale
        if softcap > 0:
            scores = torch.tanh(scores / softcap) * softcap
        scores = _apply_mask(scores, mask, begin, end, keys - tokens, window, causal)
        probabilities = _softmax(scores, sinks)
        if dropout > 0:
            probabilities = torch.nn.functional.dropout(probabilities, dropout)
        weights = probabilities.to(value.dtype).view(batch, key.shape[1], groups * (end - begin), keys)
        out[:, :, begin:end] = (weights @ value).view(batch, heads, end - begin, value.shape[3])
    return out


def _apply_mask(
    scores: torch.Tensor, mask: torch.Tensor | None, begin: int, end: int, history: int, window: int, causal: bool
) -> torch.Tensor:
    if mask is not None:
        part = mask[:, :, begin:end]
        if mask.dtype == torch.bool:
            return scores.masked_fill(~part, -torch.inf)
        blocked = part <= torch.finfo(part.dtype).min / 2
        return (scores + part.float()).masked_fill(blocked, -torch.inf)
    key = torch.arange(scores.shape[3], device=scores.device)
    position = torch.arange(history + begin, history + end, device=scores.device)[:, None]
    if causal:
        scores = scores.masked_fill(key > position, -torch.inf)
    if window > 0:
        scores = scores.masked_fill(key <= position - window, -torch.inf)
    return scores


def _softmax(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """Over keys, a sink adding exp(sink) to the denominator; zeros where nothing is seen."""
    top = scores.amax(dim=3, keepdim=True)
    if sinks is not None:
        sinks = sinks.float().view(1, -1, 1, 1)
        top = torch.maximum(top, sinks)
    top = top.clamp(min=torch.finfo(torch.float32).min)  # -inf where nothing is seen
    exponentials = torch.exp(scores - top)
    total = exponentials.sum(dim=3, keepdim=True)
    if sinks is not None:
        total = total + torch.exp(sinks - top)
    return exponentials / total.clamp(min=torch.finfo(torch.float32).tiny)
