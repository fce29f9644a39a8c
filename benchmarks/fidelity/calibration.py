# SPDX-License-Identifier: Apache-2.0
"""What calibrated variants take from the calibration text: made once a model, when first asked for."""

from __future__ import annotations

import torch

from fidelity.attention import Recorder, logits
from fidelity.texts import calibration
from turboquant import ops
from turboquant.benchmark.models import Subject
from turboquant.calibrate import QUERY_TOKENS


class Calibration:
    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._made: dict | None = None

    def get(self) -> dict:
        """"balances": layer -> [kv_heads, head_dim]; "queries": layer -> [q_heads, tokens, head_dim], as many as a file keeps; "layers": the
        recorded `Layer`s."""
        if self._made is None:
            recorder = Recorder()
            logits(self._subject.model, calibration(self._subject.tokenizer), None, recorder)
            layers = [layer for _, layer, _ in recorder.layers]
            self._made = {
                "layers": layers, "balances": {layer.index: _balance(layer) for layer in layers},
                "queries": {layer.index: _queries(layer.query) for layer in layers},
            }  # fmt: skip
        return self._made


def _queries(query: torch.Tensor) -> torch.Tensor:
    """Evenly spaced."""
    step = max(query.shape[1] // QUERY_TOKENS, 1)
    return query[:, step - 1 :: step][:, :QUERY_TOKENS].bfloat16()


def _balance(layer) -> torch.Tensor:
    """The operator takes at most 128 tokens of a sequence, so the text is given as many sequences of 128."""
    tokens = layer.keys.shape[1] // 128 * 128
    rows = [x[:, :tokens].transpose(0, 1).contiguous() for x in (layer.query, layer.keys)]
    starts = torch.arange(0, tokens + 1, 128, dtype=torch.int32, device=rows[0].device)
    return ops.balance(*rows, starts)
