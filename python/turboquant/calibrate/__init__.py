# SPDX-License-Identifier: Apache-2.0
"""Measures a model's balance vectors on a text, and keeps some of its queries: python -m turboquant.calibrate."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from turboquant import ops
from turboquant.activations import Activations, observe
from turboquant.cache import TurboQuantCache
from turboquant.calibration import Calibration, model_identity, weights_identity
from turboquant.layers import TurboQuantLayer

SEQUENCE = 128  # tokens that the operator `balance` looks at in each sequence
QUERY_TOKENS = 128  # whose queries are kept, evenly spaced in all


def calibrate(model: PreTrainedModel, texts: Iterable[Tensor], name: str = "") -> Calibration:
    """`texts`: token ids [count] each, at least 128 long; each is cut into sequences of 128 tokens, which count alike."""
    layers = {i for i, layer in enumerate(TurboQuantCache(model.config).layers) if isinstance(layer, TurboQuantLayer)}
    seen: dict[int, list[tuple[Tensor, Tensor]]] = {i: [] for i in sorted(layers)}
    tokens = 0

    def keep(activations: Activations) -> None:
        if activations.index in layers:
            whole = activations.keys.shape[1] // SEQUENCE * SEQUENCE
            pair = (activations.query, activations.keys)
            seen[activations.index].append(tuple(x[:, :whole].transpose(0, 1).contiguous() for x in pair))

    for text in texts:
        if len(text) < SEQUENCE:
            raise ValueError(f"a text of {len(text)} tokens: calibration needs {SEQUENCE} at least")
        observe(model, text, keep)
        tokens += len(text) // SEQUENCE * SEQUENCE
    if not tokens:
        raise ValueError("no text: calibration needs one at least")
    balances, queries = {}, {}
    for index, pieces in seen.items():
        query, keys = (torch.cat(part) for part in zip(*pieces))
        starts = torch.arange(0, len(keys) + 1, SEQUENCE, dtype=torch.int32, device=keys.device)
        balances[index] = ops.balance(query, keys, starts).cpu()
        step = len(query) // QUERY_TOKENS
        queries[index] = query[step - 1 :: step][:QUERY_TOKENS].transpose(0, 1).to("cpu", torch.bfloat16, copy=True).contiguous()
        pieces.clear()
    return Calibration(balances, model_identity(model.config), weights_identity(model), tokens, name, queries)
