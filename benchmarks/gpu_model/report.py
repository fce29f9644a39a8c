# SPDX-License-Identifier: Apache-2.0
"""From measured rows to the report: targets judged, the printed lines. Needs no GPU and no torch."""

from __future__ import annotations

from .rows import Row, Target

SCHEMA = 1
WORDS = {
    "speedup": "x the baseline's speed", "host_share": "x DynamicCache's host time", "time_over": "x the baseline's time",
    "resident_share": "of bf16's bytes", "extra_share": "of bf16's bytes at the peak", "length_ratio": "x DynamicCache's length",
    "over_floor": "x (weights + pages) at a copy's rate",
}  # fmt: skip
ARMS = {"default": "DynamicCache", "flash": "DynamicCache, flash", "static": "StaticCache", "quantized": "QuantizedCache", "turboquant": "ours"}


def describe(row: Row) -> dict:
    return {"name": row.name, "kind": row.kind, "batch": row.batch, "tokens": row.tokens}


def judge(target: Target, row: dict) -> dict:
    """A target's entry: its value, and whether it is met (None: it was not measured)."""
    value = row.get(target.what) if row.get("right", True) else None
    least, most = target.at_least, target.at_most
    met = None if value is None else (least is None or value >= least) and (most is None or value <= most)
    return {"what": target.what, "at_least": least, "at_most": most, "value": value, "met": met}


def complete(row: Row, found: dict) -> dict:
    result = describe(row) | found
    return result | {"targets": [judge(target, result) for target in row.targets]}


def target_text(target: dict) -> str:
    sign, bound = (">=", target["at_least"]) if target["at_least"] is not None else ("<=", target["at_most"])
    verdict = {True: "met", False: "MISSED", None: "not measured"}[target["met"]]
    value = "-" if target["value"] is None else f"{target['value']:.2f}"
    return f"{sign} {bound:g} {WORDS[target['what']]}: {value}, {verdict}"


def spread(values: dict) -> str:
    return f"{values['median']:.2f} ({values['p10']:.2f}..{values['p90']:.2f})"


def line(row: dict) -> str:
    if row.get("failed"):
        return f"{row['name']:<32} FAILED: {row['failed']}"
    parts = [f"{ARMS[arm]} {spread(values)} {unit}" for unit in ("ms", "us") for arm, values in row.get(unit, {}).items()]
    parts += [f"{ARMS[arm]}, each step waited for, {spread(values)} ms" for arm, values in row.get("waited_ms", {}).items()]
    parts += [f"ratio {spread(row['ratio'])}"] if "ratio" in row else []
    parts += [f"inductor with {', '.join(row['inductor'])}"] if "inductor" in row else []
    parts += [f"{ARMS.get(arm, arm)} {count:,} tokens" for arm, count in row.get("longest", {}).items()]
    parts += [f"{ARMS[arm]} {', '.join(f'{what} {count / 1e6:,.1f} MB' for what, count in held.items())}" for arm, held in row.get("bytes", {}).items()]
    if "error" in row:
        parts.append(f"logits {row['error']:.1e} apart, torch's own {row['sdpa_error']:.1e}{'' if row['right'] else ': WRONG'}")
    return f"{row['name']:<32} {'; '.join(parts + [target_text(target) for target in row['targets']])}"
