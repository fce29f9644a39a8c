#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the README's table of GPU times from the committed runs, benchmarks/results/attend_gpu_*.json: tools/gpu_table.py

A run gets there by `make gpu-bench` and a copy of build/gpu-bench/attend_gpu.json. tests/python/test_readme.py compares."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- GPU runs: written by tools/gpu_table.py -->\n", "<!-- end of GPU runs -->\n"
SHOWN = ("1 x 2,048", "1 x 11,264", "1 x 131,072", "8 x 11,264", "32 x 11,264", "64 x 2,048", "256 x 512", "3/3 bits, 32 x 11,264", "2/2 bits, 32 x 11,264")


def rendered() -> str:
    """All committed runs, in the order of their names; empty without one."""
    paths = sorted((ROOT / "benchmarks/results").glob("attend_gpu_*.json"))
    reports = [(path, json.loads(path.read_text())) for path in paths]
    return "\n".join(section(path, report) for path, report in reports if report["benchmark"] == "attend_gpu")


def split(readme: str) -> tuple[str, str, str]:
    """README.md before, between and after the two markers."""
    before, begin, rest = readme.partition(BEGIN)
    between, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit("README.md has no markers for GPU runs")
    return before + begin, between, end + after


def section(path: Path, report: dict) -> str:
    """A run as Markdown: the shown rows, and how many of all targets it met."""
    rows = {row["name"]: row for row in report["rows"] if row["right"]}
    targets = [target["met"] for row in report["rows"] for target in row["targets"] if target["met"] is not None]
    run = f"[the run]({path.relative_to(ROOT)})" if path.is_relative_to(ROOT) else path.name
    copy = f"copy {report['copy_gb_s']:,.0f} GB/s"
    caption = f"{report['device']}, {copy}, torch {report['torch']} ({run}; {sum(targets)} of {len(targets)} targets met):"
    head = "| sequences x tokens | microseconds | GB/s | of copy | cuDNN bf16, microseconds | ratio |"
    body = [_line(rows[name]) for name in SHOWN if name in rows]
    return "\n".join(["", caption, "", head, "|---|---|---|---|---|---|", *body, ""])


def _line(row: dict) -> str:
    us = row["us"].get("chained") or row["us"]["graph"]
    cudnn, ratio = row.get("cudnn_us"), row["ratio_to_cudnn"]
    cells = [
        row["name"], f"{us['median']:.1f}", f"{row['gb_s']:,.0f}", f"{100 * row['share_of_copy']:.0f} %",
        f"{cudnn['median']:.1f}" if cudnn else "", f"{ratio:.2f}" if ratio else "",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    before, _, after = split(readme.read_text())
    readme.write_text(before + rendered() + after)
