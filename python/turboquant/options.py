# SPDX-License-Identifier: Apache-2.0
"""What a model asks of attention beside its tensors: transformers' keyword arguments, honoured or refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

# Arguments that some attention functions know and that would change the result here.
UNSUPPORTED = frozenset(("position_bias", "head_mask", "cu_seq_lens_q", "cu_seq_lens_k", "block_mask"))
RARE = UNSUPPORTED | {"output_attentions"}
READ = RARE | {"softcap", "sliding_window", "is_causal", "s_aux"}


@dataclass(eq=False)
class Options:
    scale: float
    softcap: float
    window: int
    sinks: torch.Tensor | None
    causal: bool
    dropout: float


def read_options(
    module: torch.nn.Module, query: torch.Tensor, dropout: float, scaling: float | None, kwargs: dict[str, Any]
) -> Options:
    if kwargs.get("output_attentions") or _wants_weights(module):
        raise NotImplementedError(
            "output_attentions: 'turboquant' never holds the attention weights; "
            "use model.set_attn_implementation('eager') to see them"
        )
    for name in UNSUPPORTED.intersection(kwargs):
        if kwargs[name] is not None:
            raise NotImplementedError(f"{name} is not supported by the attention 'turboquant': use 'sdpa' or 'eager'")
    causal = kwargs.get("is_causal")
    sinks = kwargs.get("s_aux")
    return Options(
        scale=query.shape[3] ** -0.5 if scaling is None else float(scaling),
        softcap=float(kwargs.get("softcap") or 0.0),
        window=int(kwargs.get("sliding_window") or 0),
        sinks=None if sinks is None else sinks.detach().float(),
        causal=getattr(module, "is_causal", True) if causal is None else bool(causal),
        dropout=dropout,
    )


def check_inference(module: torch.nn.Module) -> None:
    if module.training:
        raise NotImplementedError("TurboQuantCache is for inference: call model.eval(), or train with use_cache=False")


class LastOptions:
    """A layer's options and what they were read from, so that the next call's need not be read when it brings the same."""

    __slots__ = ("options", "dropout", "scaling", "config", "given", "sinks", "version")

    def __init__(
        self, module: torch.nn.Module, query: torch.Tensor, dropout: float, scaling: float | None, kwargs: dict[str, Any]
    ) -> None:
        self.options = read_options(module, query, dropout, scaling, kwargs)
        self.dropout, self.scaling = dropout, scaling
        self.config = _values(module)
        self.sinks = kwargs.get("s_aux")
        self.version = _version(self.sinks)
        self.given: tuple | None = None  # nothing that is read
        if not READ.isdisjoint(kwargs):
            self.given = (kwargs.get("softcap"), kwargs.get("sliding_window"), kwargs.get("is_causal"))

    def are(self, dropout: float, scaling: float | None, kwargs: dict[str, Any]) -> bool:
        if self.scaling != scaling or self.dropout != dropout or self.config.get("_output_attentions"):
            return False
        if self.given is None:
            return READ.isdisjoint(kwargs)
        get = kwargs.get
        return (
            RARE.isdisjoint(kwargs)
            and self.given == (get("softcap"), get("sliding_window"), get("is_causal"))
            and self.sinks is get("s_aux")
            and (self.sinks is None or (self.version is not None and self.version == _version(self.sinks)))
        )

    def __reduce__(self) -> tuple:
        return type(None), ()  # of one model's modules: a copy of the cache reads its own


def _version(tensor: torch.Tensor | None) -> tuple[int, int] | None:
    return None if tensor is None or tensor.is_inference() else (tensor._version, tensor.data_ptr())


def _values(module: torch.nn.Module) -> dict[str, Any]:
    """The dictionary beneath module.config."""
    config = getattr(module, "config", None)
    return {} if config is None else object.__getattribute__(config, "__dict__")


def _wants_weights(module: torch.nn.Module) -> bool:
    """config.output_attentions. Its property costs as much as two operators, so the value is read beneath it."""
    if torch.compiler.is_compiling():  # which knows properties, and not what is beneath them
        return bool(getattr(getattr(module, "config", None), "output_attentions", False))
    return bool(_values(module).get("_output_attentions"))
