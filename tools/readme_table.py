#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the README's table from the committed demo runs, benchmarks/results/demo*.json: tools/readme_table.py

A run gets there by `make demo` on an idle machine and a copy of demo-report.json. tests/python/test_readme.py compares."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))

import markers  # noqa: E402

BEGIN, END = "<!-- demo runs: written by tools/readme_table.py -->\n", "<!-- end of demo runs -->\n"


def rendered() -> str:
    """All committed demo runs, in the order of their names; empty without one."""
    return "\n".join(_section(path) for path in sorted((ROOT / "benchmarks/results").glob("demo*.json")))


def split(readme: str) -> tuple[str, str, str]:
    return markers.split(readme, BEGIN, END)


def _section(path: Path) -> str:
    report = json.loads(path.read_text())
    model, device, setting = report["model"], report["device"], report["setting"]
    kl, bytes_, speed, first = report["kl"], report["cache_bytes"], report["speed"], report["time_to_first_token_s"]
    fringe = "+".join(map(str, setting["fringe"]))
    differs = report["first_differing_token"]
    rows = [
        ("cache, against 16 bits", _mb(bytes_["baseline"]), f"{_mb(bytes_['turboquant'])}, {report['ratio']:.2f} x smaller"),
        ("time to first token", *(f"{first[arm]:.2f} s" for arm in ("baseline", "turboquant"))),
        ("time per token, median", *(f"{1e3 * speed[arm]['time_per_token_s']:.1f} ms" for arm in ("baseline", "turboquant"))),
        ("tokens/s", *(f"{report['tokens_per_s'][arm]:.1f}" for arm in ("baseline", "turboquant"))),
        ("first differing token", "", f"none of {report['new_tokens']['baseline']}" if differs is None else f"{differs + 1}"),
        ("KL to DynamicCache, mean", "", f"{kl['mean']:.5f} nats a token"),
        ("KL, 99 % and 99.9 %", "", f"{kl['p99']:.4f} and {kl['p999']:.4f}"),
        ("same most likely token", "", f"{100 * report['top1']:.1f} %"),
    ]
    head = f"| | DynamicCache | TurboQuantCache, K{setting['k_bits']}/V{setting['v_bits']}, fringe {fringe} |"
    where = f"{device['name']}, {report['threads']} threads, {model['dtype']}"
    caption = f"{model['name']}, {report['prompt_tokens']:,} prompt tokens, on {where} ([the run]({path.relative_to(ROOT)})):"
    return "\n".join(["", caption, "", head, "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows), ""])


def _mb(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    before, _, after = split(readme.read_text())
    readme.write_text(before + rendered() + after)
