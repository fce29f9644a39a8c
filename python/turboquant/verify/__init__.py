# SPDX-License-Identifier: Apache-2.0
"""How well each layer and KV head of a model survives its codes, on the model's own activations: python -m turboquant.verify."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from turboquant.activations import Activations, observe
from turboquant.cache import TurboQuantCache
from turboquant.calibration import Calibration
from turboquant.layers import TurboQuantLayer

QUERY_BLOCK = 256


@dataclass(frozen=True)
class HeadError:
    """Of one KV head over all texts. Errors are relative, root of summed squares."""

    layer: int
    head: int
    keys: float
    values: float
    output: float  # of the attention output of its query heads, before W_o
    kl: float  # KL(exact || coded) of the attention weights, nats, mean over queries

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@torch.no_grad()
def verify(
    model: PreTrainedModel, texts: Iterable[Tensor], k_bits: int = 4, v_bits: int = 4, balance: bool | Calibration = True, seed: int = 0
) -> list[HeadError]:
    """`texts`: token ids [count] each. Every text is stored in one call without a fringe, then each query reads all older tokens
    from the codes and its own exactly. Layers that a cache keeps in 16 bits are left out. The worst output comes first."""
    sums: dict[tuple[int, int], Tensor] = {}

    def look(activations: Activations) -> None:
        layer = layers[activations.index] if activations.index < len(layers) else None
        if not isinstance(layer, TurboQuantLayer) or layer.length:
            return  # stock, or a reader of another layer's KV
        for head, found in enumerate(_sums(layer, activations)):
            key = (activations.index, head)
            sums[key] = sums[key] + found if key in sums else found

    for text in texts:
        layers = TurboQuantCache(model.config, k_bits, v_bits, fringe=None, balance=balance, seed=seed, hold=0).layers
        observe(model, text, look)
    errors = []
    for (layer, head), (key, key0, value, value0, out, out0, kl, count) in ((k, s.tolist()) for k, s in sums.items()):
        errors.append(HeadError(layer, head, *(_ratio(*pair) for pair in ((key, key0), (value, value0), (out, out0))), kl / count))
    return sorted(errors, key=lambda e: -e.output if e.output == e.output else float("-inf"))


def _ratio(error: float, reference: float) -> float:
    return (error / reference) ** 0.5 if reference else 0.0


def _sums(layer: TurboQuantLayer, a: Activations) -> list[Tensor]:
    """Per KV head, float64 [8]: squared error and square of keys, values and outputs, sum of KL, queries."""
    layer.update(a.keys[None], a.values[None])
    layer.attended(layer.pending, a.query[None])
    layer.flush()  # other layers may read it too, but not here
    keys, values = (x[0].float() for x in layer.dequantize(torch.float32))
    layer.reset()
    return [_head_sums(a, head, keys[head], values[head]) for head in range(len(keys))]


def _head_sums(a: Activations, head: int, coded_keys: Tensor, coded_values: Tensor) -> Tensor:
    keys, values = a.keys[head].float(), a.values[head].float()
    tokens, group = len(keys), a.query.shape[0] // a.keys.shape[0]
    query = a.query[head * group : (head + 1) * group].float()
    totals = torch.zeros(8, dtype=torch.float64)
    totals[:4] = _squares(coded_keys - keys, keys, coded_values - values, values)
    for begin in range(0, tokens, QUERY_BLOCK):
        end = min(begin + QUERY_BLOCK, tokens)
        rows, position = query[:, begin:end], torch.arange(begin, end, device=keys.device)[:, None]
        age = position - torch.arange(end, device=keys.device)
        hidden = (age < 0) | (age >= a.window) if a.window else age < 0
        exact = rows @ keys[:end].T
        coded = torch.where(age == 0, exact, rows @ coded_keys[:end].T)
        exact, coded = (_weights(x, a, hidden) for x in (exact, coded))
        out, own = exact.exp() @ values[:end], coded.exp()
        error = own @ coded_values[:end] - out
        own = own.diagonal(begin, 1, 2)[..., None]  # each query's weight of its own token, which is exact
        error += own * (values - coded_values)[begin:end]
        kl = torch.where(hidden, 0.0, exact.exp() * (exact - coded)).sum(dtype=torch.float64)
        totals[4:] += torch.tensor([*_squares(error, out), float(kl), group * (end - begin)], dtype=torch.float64)
    return totals


def _weights(scores: Tensor, a: Activations, hidden: Tensor) -> Tensor:
    scores = scores * a.scale
    if a.softcap:
        scores = torch.tanh(scores / a.softcap) * a.softcap
    return scores.masked_fill(hidden, -torch.inf).log_softmax(-1)


def _squares(*tensors: Tensor) -> Tensor:
    return torch.tensor([float(x.double().square().sum()) for x in tensors], dtype=torch.float64)
