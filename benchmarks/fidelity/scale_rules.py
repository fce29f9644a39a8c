# SPDX-License-Identifier: Apache-2.0
"""Ways to choose the scale at which a vector is coded: what each leaves of the squared error, on a model's own keys and values.
All with the exact codebook and its midpoints: the product's thresholds (src/core/tables.h) cost about 0.4 % more at 4 bits.

    PYTHONPATH=benchmarks python -m fidelity.scale_rules --texts prose,code,german --json out.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from fidelity.attention import Recorder, logits
from fidelity.facts import collect
from fidelity.models import open_model
from fidelity.recipe import TOPS, Sketch, _balance, _codebook, _page_centre, _rotate, _stored_centre
from fidelity.texts import TEXTS, read
from turboquant.benchmark.models import Subject
from turboquant.settings import sign_seed

Rule = Callable[[Tensor, Tensor, Tensor], Tensor]  # sizes [n, dim], centroids and boundaries above 0 -> centroids [n, dim]


def at(x: Tensor, ratio: Tensor | float, centroids: Tensor, boundaries: Tensor) -> Tensor:
    return centroids[torch.bucketize(x * ratio, boundaries, right=True)]


def cosine(x: Tensor, codes: Tensor) -> Tensor:
    return (x * codes).sum(-1, keepdim=True) / codes.norm(dim=-1, keepdim=True)


def best_of(x: Tensor, ratios: list, c: Tensor, b: Tensor, score: Callable = cosine) -> Tensor:
    best, codes = None, None
    for ratio in ratios:
        candidate = at(x, ratio, c, b)
        new = score(x, candidate) if score is cosine else score(x, candidate, ratio)
        if best is None:
            best, codes = new, candidate
        else:
            codes, best = torch.where(new > best, candidate, codes), torch.maximum(new, best)
    return codes


def alternate(x: Tensor, ratio: Tensor | float, times: int, c: Tensor, b: Tensor) -> Tensor:
    """Codes at a ratio, the ratio that fits them best, codes again ..."""
    for _ in range(times):
        codes = at(x, ratio, c, b)
        ratio = codes.square().sum(-1, keepdim=True) / (x * codes).sum(-1, keepdim=True)
    return at(x, ratio, c, b)


def top(x: Tensor, c: Tensor, factor: float = 1.0) -> Tensor:
    """The ratio that puts the largest coordinate at `factor` times the largest centroid."""
    return factor * c[-1] / x.amax(-1, keepdim=True)


def hinted(x: Tensor, tops: tuple[float, ...], c: Tensor, b: Tensor) -> Tensor:
    """The middle of three candidates, then the one on the side to which its own best fit points."""
    middle = at(x, top(x, c, tops[1]), c, b)
    fit = middle.square().sum(-1, keepdim=True) / (x * middle).sum(-1, keepdim=True)
    other = at(x, torch.where(fit < top(x, c, tops[1]), top(x, c, tops[0]), top(x, c, tops[2])), c, b)
    return torch.where(cosine(x, other) > cosine(x, middle), other, middle)


def rules(bits: int) -> dict[str, Rule]:
    nearest = lambda x, codes, ratio: -(x - codes / ratio).square().sum(-1, keepdim=True)  # noqa: E731
    tops = TOPS[bits]
    return {
        "of the norm": lambda x, c, b: at(x, 1.0, c, b),
        "9 about the norm, by cosine": lambda x, c, b: best_of(x, [0.8 + 0.05 * s for s in range(9)], c, b),
        "8 about the norm, by distance": lambda x, c, b: best_of(x, [0.78 + 0.06 * s for s in range(8)], c, b, nearest),
        "3 about the norm, by cosine": lambda x, c, b: best_of(x, [0.88, 1.02, 1.16], c, b),
        "of the norm, fitted once": lambda x, c, b: alternate(x, 1.0, 1, c, b),
        "of the norm, fitted twice": lambda x, c, b: alternate(x, 1.0, 2, c, b),
        "of the norm, fitted three times": lambda x, c, b: alternate(x, 1.0, 3, c, b),
        "of the largest": lambda x, c, b: at(x, top(x, c, tops[len(tops) // 2]), c, b),
        "of the largest, fitted once": lambda x, c, b: alternate(x, top(x, c, tops[len(tops) // 2]), 1, c, b),
        "2 about the largest, by cosine": lambda x, c, b: best_of(x, [top(x, c, f) for f in tops[:: len(tops) - 1]], c, b),
        "a middle one, then one of its neighbours": lambda x, c, b: hinted(x, (tops[0], tops[len(tops) // 2], tops[-1]), c, b),
        "the product's about the largest": lambda x, c, b: best_of(x, [top(x, c, f) for f in tops], c, b),
        "80 about the norm, by cosine": lambda x, c, b: best_of(x, [0.5 + 0.02 * s for s in range(80)], c, b),
    }


def vectors(subject: Subject, text: str, every: int) -> Iterator[tuple[str, Tensor]]:
    """Residuals of keys and rotated values as the recipe codes them, of every n-th token: "keys" or "values", [n, dim]."""
    recorder = Recorder()
    logits(subject.model, read(subject.tokenizer, TEXTS[text]), None, recorder)
    for _, layer, _ in recorder.layers:
        y = _rotate(layer.keys / _balance(layer, Sketch.balance), "hadamard", sign_seed(0, layer.index, False))
        c = torch.cat([_stored_centre(_page_centre(part, True)).expand_as(part) for part in y.split(64, 1)], 1)
        nearer = (y - c).norm(dim=-1, keepdim=True) <= y.norm(dim=-1, keepdim=True)
        yield "keys", (y - torch.where(nearer, c, 0.0))[:, ::every].flatten(0, 1)
        yield "values", _rotate(layer.values, "hadamard", sign_seed(0, layer.index, True))[:, ::every].flatten(0, 1)


def measure(found: dict[str, list[Tensor]]) -> list[dict]:
    out = []
    for which, parts in found.items():
        u = torch.cat(parts)
        norm = u.norm(dim=-1, keepdim=True)
        x = u[norm[:, 0] > 1e-20].abs() / norm[norm[:, 0] > 1e-20]
        for bits in (4, 3, 2):
            centroids, boundaries = _codebook(x.shape[-1], bits)
            c, b = centroids[len(centroids) // 2 :].contiguous(), boundaries[len(boundaries) // 2 + 1 :].contiguous()
            for name, rule in rules(bits).items():
                error = float((2 - 2 * cosine(x, rule(x, c, b))).mean())
                row = {"of": which, "bits": bits, "rule": name, "relative_squared_error": error}
                out.append(row | {"vectors": len(x), "dim": x.shape[-1]})
    return out


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model")
    arguments.add_argument("--texts", default="prose,code,german")
    arguments.add_argument("--every", type=int, default=8)
    arguments.add_argument("--json", type=Path, required=True)
    given = arguments.parse_args()
    subject = open_model(given.model, torch.device("cpu"), torch.float32)
    found: dict[str, list[Tensor]] = {"keys": [], "values": []}
    for text in given.texts.split(","):
        for which, u in vectors(subject, text, given.every):
            found[which].append(u)
    result = {"benchmark": "scale_rules", "schema": 1, "facts": collect(subject, torch.device("cpu"))}
    result |= {"texts": given.texts.split(","), "every": given.every, "rows": measure(found)}
    given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
