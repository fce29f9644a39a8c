# SPDX-License-Identifier: Apache-2.0
"""Relative error of each attention block's output, after W_o, with the reference's own queries, keys and values."""

from __future__ import annotations

import torch

from fidelity.attention import Recorder, Study, attend


@torch.no_grad()
def block_errors(recorded: Recorder, study: Study) -> list[float]:
    """|| W_o (attention through the study - attention) || / || W_o attention ||, Frobenius over a text, per layer."""
    errors = []
    for module, layer, out in recorded.layers:
        project = getattr(module, "o_proj", None)
        weight = project.weight.float() if project is not None else None
        parts = [x.transpose(0, 1).flatten(1) for x in (attend(layer, study) - out, out)]
        if weight is not None:
            parts = [part @ weight.T for part in parts]
        errors.append(float(parts[0].norm() / parts[1].norm()))
    return errors
