# SPDX-License-Identifier: Apache-2.0
"""The rows of the model benchmark: what is measured at which shape, and the targets. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """`what` names a number of the measured row (report.WORDS says it in words)."""

    what: str
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Row:
    """`kind` says which measurement (kinds.py); `batch` sequences of `tokens` cached (or prompted) tokens each. `seconds`: about
    what it takes on an H100, to know whether there is time for it."""

    name: str
    kind: str
    batch: int
    tokens: int
    targets: tuple[Target, ...] = ()
    seconds: float = 10.0


def rows() -> list[Row]:
    """In the order of their run. Compiling takes most of the time, so a run that is short of it lacks the last ones."""
    return [
        _eager(1, 2048, 1.0), _eager(1, 11264, 1.05), _eager(8, 11264, 1.05), _eager(32, 4096, 1.3), _eager(32, 10240, 1.5),
        Row("host, update + attention", "host", 1, 64, (Target("host_share", at_most=1.0),)),
        Row("first token, 1 x 2,048", "first token", 1, 2048),
        Row("first token, 8 x 8,192", "first token", 8, 8192, (Target("time_over", at_most=1.05),), 25),
        Row("bytes, 8 x 8,192", "memory", 8, 8192, (Target("resident_share", at_most=0.28), Target("extra_share", at_most=0.35)), 15),
        Row("longest context", "longest", 1, 0, (Target("length_ratio", at_least=3.5),), 25),
        *(Row(f"QuantizedCache, {batch} x {tokens:,}", "quantized", batch, tokens) for batch, tokens in ((1, 2048), (1, 11264), (8, 11264))),
        _compiled(1, 11264, Target("speedup", at_least=1.6)),
        _compiled(1, 131072, Target("speedup", at_least=2.5)),
        _compiled(8, 11264, Target("speedup", at_least=4), Target("over_floor", at_most=1.25)),
        Row(f"{_compiled(8, 11264).name}, joined projections", "joined", 8, 11264, (Target("speedup", at_least=4), Target("over_floor", at_most=1.25)), 80),
    ]  # fmt: skip


def _eager(batch: int, tokens: int, speedup: float) -> Row:
    return Row(f"eager step, {batch} x {tokens:,}", "eager", batch, tokens, (Target("speedup", at_least=speedup),))


def _compiled(batch: int, tokens: int, *targets: Target) -> Row:
    return Row(f"compiled step, {batch} x {tokens:,}", "compiled", batch, tokens, targets, 80)
