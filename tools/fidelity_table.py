#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the fidelity tables of README.md (some rows) and docs/fidelity.md (all) from benchmarks/results/fidelity_*.json:
tools/fidelity_table.py

A run gets there by `measure_fidelity.py run` and `report --json`. tests/python/test_readme.py compares."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "tools"), str(ROOT / "benchmarks")]

import markers  # noqa: E402
from fidelity import tables  # noqa: E402
from fidelity.reproduce import tables as paper  # noqa: E402

BEGIN, END = "<!-- fidelity runs: written by tools/fidelity_table.py -->\n", "<!-- end of fidelity runs -->\n"


def reports() -> list[tuple[Path, dict]]:
    paths = sorted((ROOT / "benchmarks/results").glob("fidelity_*.json"))
    return [(path, report) for path in paths if (report := json.loads(path.read_text()))["benchmark"] == "fidelity"]


def rendered() -> str:
    """README.md's part; empty without a run."""
    return "".join(f"\n{tables.short(report, str(path.relative_to(ROOT)))}\n" for path, report in reports())


def rendered_in_full() -> str:
    """docs/fidelity.md's part: our comparison, then the paper's experiments."""
    parts = [tables.full(report, "../" + str(path.relative_to(ROOT))) for path, report in reports()]
    parts.append("### The paper's experiments")
    for path in sorted((ROOT / "benchmarks/results").glob("paper*.json")):
        parts.append(paper.full(json.loads(path.read_text()), "../" + str(path.relative_to(ROOT))))
    return "".join(f"\n{part}\n" for part in parts)


def split(document: str) -> tuple[str, str, str]:
    return markers.split(document, BEGIN, END)


if __name__ == "__main__":
    for name, part in (("README.md", rendered()), ("docs/fidelity.md", rendered_in_full())):
        before, _, after = split((ROOT / name).read_text())
        (ROOT / name).write_text(before + part + after)
