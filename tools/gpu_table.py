#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of GPU times in README.md (some rows) and docs/attend.md (all) from the committed runs,
benchmarks/results/attend_gpu_*.json: tools/gpu_table.py

A run gets there by `make gpu-bench` and a copy of build/gpu-bench/attend_gpu.json. tests/python/test_readme.py compares."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))

import markers  # noqa: E402

BEGIN, END = "<!-- GPU runs: written by tools/gpu_table.py -->\n", "<!-- end of GPU runs -->\n"
SHOWN = ("1 x 2,048", "1 x 11,264", "1 x 131,072", "8 x 11,264", "32 x 11,264", "64 x 2,048", "256 x 512", "3/3 bits, 32 x 11,264", "2/2 bits, 32 x 11,264")


def reports() -> list[tuple[Path, dict]]:
    """All committed runs, in the order of their names."""
    paths = sorted((ROOT / "benchmarks/results").glob("attend_gpu_*.json"))
    found = [(path, json.loads(path.read_text())) for path in paths]
    return [(path, report) for path, report in found if report["benchmark"] == "attend_gpu"]


def rendered() -> str:
    """README.md's part; empty without a run."""
    return "\n".join(section(path, report) for path, report in reports())


def rendered_in_full() -> str:
    """docs/attend.md's part; empty without a run."""
    return "\n".join(full_section(path, report) for path, report in reports())


def split(document: str) -> tuple[str, str, str]:
    return markers.split(document, BEGIN, END)


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


def full_section(path: Path, report: dict) -> str:
    """Every row with its targets: what was reached, and by how much it falls short."""
    clocks = report.get("under_load", {})
    caption = (
        f"{report['device']} ({clocks.get('clocks.sm', '?')} and {clocks.get('clocks.mem', '?')} MHz under load), copy "
        f"{report['copy_gb_s']:,.0f} GB/s, read {report['read_gb_s']:,.0f} GB/s, torch {report['torch']}, commit {report['commit']} "
        f"([the run](../{path.relative_to(ROOT)})):"
        if path.is_relative_to(ROOT)
        else path.name
    )
    head = "| row | graph, us | chained, us | GB/s | of copy | cuDNN, us | FLASH, us | target | reached | |"
    lines = [line for row in report["rows"] for line in _full_lines(row)]
    return "\n".join(["", caption, "", head, "|---|---|---|---|---|---|---|---|---|---|", *lines, ""])


WORDS = {
    "ratio_to_cudnn": "x cuDNN", "ratio_to_flash": "x FLASH", "share_of_copy": "of copy", "workspace_mb": "MB workspace",
    "time_over": "x the time of", "rate_over": "of the GB/s of", "extra_us": "us over",
}  # fmt: skip


def _full_lines(row: dict) -> list[str]:
    """A line for the row, and one more for each target after the first."""
    if "us" not in row:
        return [f"| {row['name']} | {row.get('failed', 'wrong result')} | | | | | | | | **not measured** |"]
    us = {name: f"{times['median']:.1f}" for name, times in row["us"].items()}
    other = [f"{row[name]['median']:.1f}" if row.get(name) else "" for name in ("cudnn_us", "flash_us")]
    cells = [row["name"], us["graph"], us["chained"], f"{row['gb_s']:,.0f}", f"{100 * row['share_of_copy']:.0f} %", *other]
    targets = [_target(target) for target in row["targets"]] or [["", "", ""]]
    lines = [cells + targets[0], *([""] * len(cells) + target for target in targets[1:])]
    return [f"| {' | '.join(line)} |" for line in lines]


def _target(target: dict) -> list[str]:
    least = target["at_least"] is not None
    bound, value = target["at_least"] if least else target["at_most"], target["value"]
    asked = f"{'>=' if least else '<='} {bound:g} {WORDS[target['what']]}" + (f" {target['of']}" if target["of"] else "")
    if value is None:
        return [asked, "", "not measured"]
    return [asked, f"{value:.2f}", "met" if target["met"] else "**missed**"]


def write(document: Path, text: str) -> None:
    before, _, after = split(document.read_text())
    document.write_text(before + text + after)


if __name__ == "__main__":
    write(ROOT / "README.md", rendered())
    write(ROOT / "docs/attend.md", rendered_in_full())
