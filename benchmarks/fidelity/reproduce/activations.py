# SPDX-License-Identifier: Apache-2.0
"""What real keys, values and queries look like to the codec, layer by layer, on one text: is what is coded normal, as the codebooks
expect; do queries look in one direction; do neighbouring tokens get like weights. docs/experiments/ says what follows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fidelity import recipe
from fidelity.attention import Recorder, logits
from fidelity.codec import Layer
from fidelity.feedback import metric
from fidelity.texts import TEXTS, read
from turboquant.benchmark.models import Subject
from turboquant.settings import sign_seed

TOKENS = 1024
FIRST, RECENT, START = 4, 28, 256  # weights of tokens outside the fringe, of queries from START on


@torch.no_grad()
def measure(subject: Subject, text: str = "prose") -> list[dict]:
    recorder = Recorder()
    logits(subject.model, read(subject.tokenizer, TEXTS[text], TOKENS), None, recorder)
    return [{"text": text, "tokens": TOKENS, **_layer(layer)} for _, layer, _ in recorder.layers]


def _layer(layer: Layer) -> dict:
    heads = layer.keys.shape[0]
    key_seed, value_seed = sign_seed(0, layer.index, False), sign_seed(0, layer.index, True)
    balance = recipe._balance(layer, "first 128")
    keys = recipe._rotate(layer.keys / balance, "hadamard", key_seed)
    centre = torch.cat([recipe._page_centre(part, True).expand_as(part) for part in keys.split(64, dim=1)], 1)
    nearer = (keys - centre).norm(dim=-1, keepdim=True) <= keys.norm(dim=-1, keepdim=True)
    keys, values = torch.where(nearer, keys - centre, keys), recipe._rotate(layer.values, "hadamard", value_seed)
    query = (layer.query.unflatten(0, (heads, -1)) * balance[:, None]).flatten(1, 2)
    moment = metric(recipe._rotate(query, "hadamard", key_seed))
    shares = torch.linalg.eigvalsh(moment).flip(-1)
    shares = (shares / shares.sum(-1, keepdim=True)).mean(0)
    return {
        "layer": layer.index, "key_kurtosis": _kurtosis(keys), "value_kurtosis": _kurtosis(values),
        "kurtosis_of_a_random_direction": 3 * keys.shape[-1] / (keys.shape[-1] + 2),
        "query_share_of_1": float(shares[0]), "query_share_of_4": float(shares[:4].sum()),
        "weights_of_neighbours_correlate": _neighbours(layer),
    }  # fmt: skip


def _kurtosis(x: Tensor) -> float:
    """Of the coordinates of vectors brought to one length."""
    x = x / x.square().mean(-1, keepdim=True).clamp_min(1e-30).sqrt()
    return float(x.pow(4).mean())


def _neighbours(layer: Layer) -> float:
    heads, tokens, dim = layer.keys.shape
    scores = layer.query.view(heads, -1, tokens, dim)[:, :, START:] @ layer.keys[:, None].mT * layer.scale
    age = torch.arange(START, tokens, device=scores.device)[:, None] - torch.arange(tokens, device=scores.device)
    weights = scores.masked_fill(age < 0, -torch.inf).softmax(-1) * (age > RECENT)
    weights[..., :FIRST] = 0
    return float((weights[..., 1:] * weights[..., :-1]).sum() / weights.square().sum())
