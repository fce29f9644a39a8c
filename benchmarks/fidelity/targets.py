# SPDX-License-Identifier: Apache-2.0
"""What the recipe is meant to reach, on SmolLM2-135M, in mean KL over the short texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Lookup = Callable[[str], float]  # a variant's mean KL; KeyError where it was not measured


@dataclass(frozen=True)
class Target:
    what: str
    measured: Lookup
    bound: Callable[[Lookup], float]
    stress: str = "none"
    metric: str = "kl"


def _kl(name: str) -> Callable[[Lookup], float]:
    return lambda kl: kl(name)


def _ratio(name: str, other: str) -> Callable[[Lookup], float]:
    return lambda kl: kl(name) / kl(other)


def _constant(value: float) -> Callable[[Lookup], float]:
    return lambda kl: value


TARGETS = (
    Target("recipe 4/4, no fringe", _kl("recipe 4/4"), _constant(0.018)),
    Target("... over the paper's MSE 4/4", _ratio("recipe 4/4", "paper MSE 4/4"), _constant(0.25)),
    Target("... over KIVI-4 (76 B)", _ratio("recipe 4/4", "KIVI-4, groups of 64 keys"), _constant(0.85)),
    Target("... over fp8", _ratio("recipe 4/4", "fp8 e4m3"), _constant(1.5)),
    Target("recipe 4/4, default fringe", _kl("recipe 4/4 fringe 4+28"), _constant(0.0020)),
    Target("... over fp8", _ratio("recipe 4/4 fringe 4+28", "fp8 e4m3"), _constant(1 / 6)),
    Target("recipe 3/3, default fringe", _kl("recipe 3/3 fringe 4+28"), _constant(0.008)),
    Target("... over fp8", _ratio("recipe 3/3 fringe 4+28", "fp8 e4m3"), _constant(1.0)),
    Target("recipe 2/2, default fringe", _kl("recipe 2/2 fringe 4+28"), _constant(0.05)),
    Target("... over KIVI-2 with its window", _ratio("recipe 2/2 fringe 4+28", "KIVI-2 window 128"), _constant(0.35)),
    Target("append only over prefill, 4/4", _ratio("recipe 4/4 append", "recipe 4/4"), _constant(1.25)),
    Target("key bias planted: perplexity, 4/4", _kl("recipe 4/4"), _constant(1.01), stress="k-bias", metric="perplexity_ratio"),
    Target("... with the default fringe", _kl("recipe 4/4 fringe 4+28"), _constant(1.01), stress="k-bias", metric="perplexity_ratio"),
    Target(
        "recipe 4/4, default fringe, over turbo-attn with its ring", _ratio("recipe 4/4 fringe 4+28", "turbo-attn 4/4 ring 128 calibrated"),
        _constant(1.0),
    ),
    Target("aim: 4/4, default fringe", _kl("recipe 4/4 fringe 4+28"), _constant(0.001)),
    Target("aim: 3/3, default fringe", _kl("recipe 3/3 fringe 4+28"), _constant(0.004)),
)


def evaluate(variants: list[dict]) -> list[dict]:
    """Over the largest set of texts that all variants of a target saw."""
    results = []
    for target in TARGETS:
        rows = [v for v in variants if v["stress"] == target.stress and v["model"].startswith("SmolLM2-135M") and v["tokens"] == 2048]
        measured = None
        for texts in sorted({tuple(v["texts"]) for v in rows}, key=len, reverse=True):
            found = {v["variant"]: v[target.metric]["mean"] for v in rows if tuple(v["texts"]) == texts}
            try:
                measured = target.measured(found.__getitem__)
                break
            except KeyError:
                continue
        bound = target.bound({}.__getitem__)
        met = None if measured is None else measured <= bound
        results.append({"what": target.what, "bound": bound, "measured": measured, "met": met})
    return results
