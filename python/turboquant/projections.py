# SPDX-License-Identifier: Apache-2.0
"""Projections of one input as one matrix product: q, k and v of an attention, gate and up of an MLP (docs/transformers.md)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def join_projections(model: PreTrainedModel) -> PreTrainedModel:
    """Lets each attention's `q_proj`, `k_proj` and `v_proj` be one product, and each MLP's `gate_proj` and `up_proj`, where they are plain
    linear layers; for inference, and of no effect where gradients are recorded. The parameters keep their names and become
    views of the joint weight: no memory is taken for good. The model itself is changed, and returned. What moves, casts or loads the whole
    model keeps the joint weights; what replaces or edits single parameters, or copies the model, comes before."""
    for parent in list(model.modules()):
        if getattr(parent, "is_kv_shared_layer", False):  # its keys and values are another layer's
            continue
        for names in GROUPS:
            parts = [getattr(parent, name, None) for name in names]
            if all(type(part) is nn.Linear and part.weight.device.type != "meta" and not hasattr(part, "_hf_hook") for part in parts):
                if len({(p.weight.dtype, p.weight.device, p.in_features, p.bias is None) for p in parts}) == 1:
                    parent.add_module("joint_" + names[0], Joint(parts))
    return model


class Joint(nn.Module):
    """The product of linear layers that take the same input, and its output until the last of them has been asked. It comes behind them in
    its parent, so that what moves, casts or loads the model has done so with them before."""

    def __init__(self, parts: list[nn.Linear]) -> None:
        super().__init__()
        self.parts = tuple(parts)  # in a tuple they are no children
        self.sizes = [part.out_features for part in parts]
        self.register_buffer("weight", None, persistent=False)
        self.register_buffer("bias", None, persistent=False)
        self.share()
        self.last: tuple[torch.Tensor, tuple[torch.Tensor, ...]] | None = None  # an input and its outputs
        for place, part in enumerate(parts):
            part.__class__ = Part
            part.place = place
            part.joint = (self,)  # nor is it theirs

    def share(self) -> None:
        """Makes the joint weight of theirs, and theirs views of it."""
        self.weight = self._shared([part.weight for part in self.parts])
        self.bias = None if self.parts[0].bias is None else self._shared([part.bias for part in self.parts])

    def _shared(self, parameters: list[nn.Parameter]) -> torch.Tensor:
        whole = torch.cat([parameter.data for parameter in parameters])
        for parameter, piece in zip(parameters, whole.split(self.sizes)):
            parameter.data = piece
        return whole

    def take(self, place: int, x: torch.Tensor) -> torch.Tensor:
        last = self.last  # read once: another thread may run the same model
        if place == 0 or last is None or last[0] is not x:
            last = x, functional.linear(x, self.weight, self.bias).split(self.sizes, dim=-1)
            self.last = last
        if place == len(self.sizes) - 1:
            self.last = None
        return last[1][place]

    def _apply(self, fn, recurse: bool = True) -> Joint:
        self.weight = self.bias = None
        self.share()
        return self

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self.share()


class Part(nn.Linear):
    """A linear layer that a Joint computes."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) if torch.is_grad_enabled() else self.joint[0].take(self.place, input)
