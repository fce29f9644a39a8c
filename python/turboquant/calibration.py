# SPDX-License-Identifier: Apache-2.0
"""Balance vectors of a model, measured once on a text and kept in a file, for every cache of that model; and queries, for its metric.

    python -m turboquant.calibrate --model DIR --out balance.safetensors
    cache = TurboQuantCache(model.config, balance="balance.safetensors")

The file is safetensors: `layers.<index>.balance` float32 [kv_heads, head_dim], of mean 1 in each head, `layers.<index>.queries`
bfloat16 [q_heads, tokens, head_dim], and metadata that says which model they belong to. A cache refuses those of another. A key metric
is in the rotated domain, which each cache draws for itself: so the file has what it is made of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

FORMAT = "turboquant balance 2"
FORMATS = ("turboquant balance 1", FORMAT)  # that can be read: the first had no queries
# What makes keys and queries what they are. Whatever else a config holds may change without changing them.
IDENTITY = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "rope_parameters", "layer_types", "sliding_window", "attention_bias", "tie_word_embeddings",
)  # fmt: skip


@dataclass(frozen=True)
class Calibration:
    balances: Mapping[int, Tensor]  # layer index -> float32 [kv_heads, head_dim], on the CPU
    model: str  # `model_identity` of the config
    weights: str  # `weights_identity` of the model
    tokens: int = 0  # they were measured on
    name: str = ""  # the model's, for messages
    queries: Mapping[int, Tensor] = field(default_factory=dict)  # layer index -> bfloat16 [q_heads, tokens, head_dim], on the CPU

    def save(self, path: str | Path) -> None:
        from safetensors.torch import save_file

        metadata = {"format": FORMAT, "model": self.model, "weights": self.weights, "tokens": str(self.tokens), "name": self.name}
        named = {"balance": self.balances, "queries": self.queries}
        save_file({f"layers.{i}.{name}": x.contiguous() for name, layers in named.items() for i, x in layers.items()}, str(path), metadata)

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """ValueError where the file is not one that `save` wrote."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") not in FORMATS:
                    raise ValueError(f"{str(path)!r} has the format {metadata.get('format')!r}, not {FORMAT!r}")
                found: dict[str, dict[int, Tensor]] = {"balance": {}, "queries": {}}
                for key in file.keys():  # noqa: SIM118  no mapping
                    _, index, name = key.split(".")
                    found[name][int(index)] = file.get_tensor(key)
        except (OSError, SafetensorError, KeyError) as error:
            raise ValueError(f"{str(path)!r} holds no balance vectors ({error}): make it with python -m turboquant.calibrate") from error
        for index, balance in found["balance"].items():
            if balance.dtype != torch.float32 or balance.dim() != 2 or not bool(((balance > 0) & balance.isfinite()).all()):
                raise ValueError(f"{str(path)!r}: the balance of layer {index} is not float32 [kv_heads, head_dim] of positive numbers")
        for index, queries in found["queries"].items():
            if queries.dtype != torch.bfloat16 or queries.dim() != 3:
                raise ValueError(f"{str(path)!r}: the queries of layer {index} are not bfloat16 [q_heads, tokens, head_dim]")
        return cls(found["balance"], metadata["model"], metadata["weights"], int(metadata["tokens"]), metadata["name"], found["queries"])

    def check_config(self, config: PreTrainedConfig) -> None:
        if model_identity(config) != self.model:
            raise ValueError(f"the balance vectors are of another model ({self.name}): calibrate this one with python -m turboquant.calibrate")

    def check_model(self, model: PreTrainedModel) -> None:
        """Finer than `check_config`: tells two models of one shape apart."""
        self.check_config(model.config)
        if weights_identity(model) != self.weights:
            raise ValueError(
                f"the balance vectors are of other weights ({self.name}) of this shape: calibrate these with python -m turboquant.calibrate"
            )


def as_calibration(balance: bool | str | Path | Calibration) -> Calibration | None:
    """What a cache's argument `balance` names: None for True and False."""
    return Calibration.load(balance) if isinstance(balance, (str, Path)) else balance if isinstance(balance, Calibration) else None


def model_identity(config: PreTrainedConfig) -> str:
    text = config.get_text_config(decoder=True)
    facts = {name: getattr(text, name, None) for name in IDENTITY}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def weights_identity(model: PreTrainedModel) -> str:
    """Of the first 64 elements of every parameter in bfloat16, so that one model's identity is the same in every dtype above."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        head = parameter.detach().flatten()[:64].to("cpu", torch.bfloat16)
        digest.update(name.encode() + head.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
