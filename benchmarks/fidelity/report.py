# SPDX-License-Identifier: Apache-2.0
"""Cells to one JSON, Markdown tables and the plot."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from fidelity.metrics import spread
from fidelity.targets import evaluate
from fidelity.texts import SHORT

SPREAD = ("kl", "kl_p99", "kl_p999", "top1", "one_minus_tv", "perplexity_ratio", "bytes_per_token", "code_bytes_per_token")


def write(cells: Path, json_path: Path | None, plot_path: Path | None) -> None:
    report = collect(cells)
    print(render(report))
    if json_path:
        json_path.write_text(dumps(report))
    if plot_path:
        from fidelity.plot import save_plot

        save_plot(report, plot_path)


def collect(cells: Path) -> dict:
    """{"runs": facts of each run, "cells": [...], "variants": means over the short texts, "targets": ...}."""
    loaded = [json.loads(path.read_text()) for path in sorted(cells.glob("*.json"))]
    if not loaded:
        raise SystemExit(f"no cells in {cells}: measure_fidelity.py run makes them")
    runs: list[dict] = []
    for cell in loaded:
        facts = cell.pop("facts")
        if facts not in runs:
            runs.append(facts)
        cell["run"] = runs.index(facts)
    variants = summarise(loaded)
    return {"benchmark": "fidelity", "schema": 1, "runs": runs, "variants": variants, "targets": evaluate(variants), "cells": loaded}


def summarise(cells: list[dict]) -> list[dict]:
    """Over the texts of 2,048 tokens; longer and shorter ones each by themselves."""
    groups = defaultdict(list)
    for cell in cells:
        text = "" if cell["tokens"] == SHORT else cell["text"]
        groups[cell["model"], cell["stress"], cell["tokens"], text, cell["variant"], cell["group"]].append(cell)
    rows = []
    for (model, stress, tokens, text, variant, group), part in groups.items():
        row = {"model": model, "stress": stress, "tokens": tokens, "texts": sorted(c["text"] for c in part), "variant": variant, "group": group}
        row |= {name: spread([c[name] for c in part]) for name in SPREAD}
        blocks = [c["block_errors"] for c in part if "block_errors" in c]
        if blocks:
            row["block_error_median"] = spread([sorted(b)[len(b) // 2] for b in blocks])
            row["block_error_worst"] = spread([max(b) for b in blocks])
        rows.append(row)
    return sorted(rows, key=lambda r: (r["model"], r["stress"], r["tokens"], r["kl"]["mean"]))


def render(report: dict) -> str:
    """Every group of variants that saw the same texts, as Markdown."""
    parts = [render_targets(report["targets"])]
    groups = defaultdict(list)
    for row in report["variants"]:
        groups[row["model"], row["stress"], row["tokens"], tuple(row["texts"])].append(row)
    for (model, stress, tokens, texts), rows in groups.items():
        planted = "" if stress == "none" else f", {stress} planted"
        parts.append(f"{model}{planted}, {tokens:,} tokens of each of: {', '.join(texts)}\n\n{render_rows(rows)}")
    return "\n\n".join(parts)


HEAD = "| variant | bytes a token and KV head | mean KL | least to most over texts | KL, 99 % | 99.9 % | same top token | perplexity |\n|---|---|---|---|---|---|---|---|"


def render_rows(rows: list[dict]) -> str:
    lines = [HEAD]
    for row in rows:
        kl = row["kl"]
        lines.append(
            f"| {row['variant']} | {row['bytes_per_token']['mean']:.4g} | {kl['mean']:.3g} | {kl['least']:.3g} to {kl['most']:.3g} "
            f"| {row['kl_p99']['mean']:.3g} | {row['kl_p999']['mean']:.3g} | {100 * row['top1']['mean']:.1f} % "
            f"| x {row['perplexity_ratio']['mean']:.4f} |"
        )
    return "\n".join(lines)


def render_targets(targets: list[dict]) -> str:
    lines = ["| target | bound | measured | |", "|---|---|---|---|"]
    for t in targets:
        met = "not measured" if t["measured"] is None else "met" if t["met"] else "missed"
        measured = "" if t["measured"] is None else f"{t['measured']:.3g}"
        lines.append(f"| {t['what']} | {t['bound']:.3g} | {measured} | {met} |")
    return "\n".join(lines)


def dumps(report: dict) -> str:
    """One cell, run and variant a line: a diff shows what changed."""
    parts = []
    for key, value in report.items():
        if isinstance(value, list):
            rows = ",\n".join("  " + json.dumps(x) for x in value)
            parts.append(f' "{key}": [\n{rows}\n ]')
        else:
            parts.append(f' "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"
