# SPDX-License-Identifier: Apache-2.0
"""Cells to one JSON, tables and the plot."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from fidelity import tables
from fidelity.metrics import spread
from fidelity.targets import evaluate

SPREAD = ("kl", "kl_p99", "kl_p999", "top1", "one_minus_tv", "perplexity", "perplexity_ratio", "bytes_per_token", "code_bytes_per_token")


def write(cells: Path, json_path: Path | None, plot_path: Path | None) -> None:
    report = collect(cells)
    print(tables.full(report, str(json_path)))
    if json_path:
        json_path.write_text(dumps(report))
    if plot_path:
        from fidelity.plot import save_plot

        save_plot(report, plot_path)


def collect(cells: Path) -> dict:
    """{"runs": facts of each run, "variants": means over texts, "targets": ..., "blocks": ..., "cells": ...}."""
    loaded = [json.loads(path.read_text()) for path in sorted(cells.glob("*.json"))]
    if not loaded:
        raise SystemExit(f"no cells in {cells}: measure_fidelity.py run makes them")
    runs: list[dict] = []
    for cell in loaded:
        facts = cell.pop("facts")
        if facts not in runs:
            runs.append(facts)
        cell["run"] = runs.index(facts)
    cells, blocks = [c for c in loaded if "kl" in c], [c for c in loaded if "block_errors" in c]
    variants = summarise(cells)
    return {
        "benchmark": "fidelity", "schema": 1, "runs": runs, "variants": variants, "targets": evaluate(variants), "blocks": blocks, "cells": cells,
    }  # fmt: skip


def summarise(cells: list[dict]) -> list[dict]:
    """Rows over each set of texts that some variant was measured on: all variants that saw at least these texts, so that the rows of
    one set compare. "only_here": the variant saw no other."""
    groups: dict[tuple, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        groups[cell["model"], cell["stress"], cell["tokens"]][cell["variant"]].append(cell)
    rows = []
    for (model, stress, tokens), variants in groups.items():
        covered = {name: frozenset(c["text"] for c in part) for name, part in variants.items()}
        for texts in set(covered.values()):
            for name, part in variants.items():
                if covered[name] >= texts:
                    chosen = [c for c in part if c["text"] in texts]
                    rows.append(_row(chosen) | {"only_here": covered[name] == texts})
    return sorted(rows, key=lambda r: (r["model"], r["stress"], r["tokens"], -len(r["texts"]), r["texts"], r["kl"]["mean"]))


def _row(cells: list[dict]) -> dict:
    row = {name: cells[0][name] for name in ("model", "stress", "tokens", "variant", "group")} | {"texts": sorted(c["text"] for c in cells)}
    return row | {name: spread([c[name] for c in cells]) for name in SPREAD}


def rounded(value: object) -> object:
    """Floats to six digits, wherever they are."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(x) for key, x in value.items()}
    return [rounded(x) for x in value] if isinstance(value, list) else value


def dumps(report: dict) -> str:
    """One cell, run and variant a line: a diff shows what changed."""
    parts = []
    for key, value in rounded(report).items():
        if isinstance(value, list):
            rows = ",\n".join("  " + json.dumps(x) for x in value)
            parts.append(f' "{key}": [\n{rows}\n ]')
        else:
            parts.append(f' "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"
