#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the table of docs/benchmark.md from the committed runs on a GPU, benchmarks/results/benchmark_*.json: tools/benchmark_table.py

A run gets there by `make gpu-demo` and a copy of build/gpu-bench/benchmark_*.json. tests/python/test_readme.py compares."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))

import markers  # noqa: E402

DOCUMENT = ROOT / "docs/benchmark.md"
BEGIN, END = "<!-- GPU runs: written by tools/benchmark_table.py -->\n", "<!-- end of GPU runs -->\n"
RUNS = ("text", "static", "image", "video")


def reports() -> dict[Path, dict]:
    paths = [ROOT / f"benchmarks/results/benchmark_{name}_h100.json" for name in RUNS]
    return {path: json.loads(path.read_text()) for path in paths if path.exists()}


def rendered_in_full() -> str:
    """Empty without a run."""
    found = reports()
    if not found:
        return ""
    columns = [_column(path, report) for path, report in found.items()]
    first = next(iter(found.values()))
    versions = first["versions"]
    caption = (
        f"{first['device']['name']}, torch {versions['torch']}, transformers {versions['transformers']}, bf16, 4/4 bits, default "
        "fringe; transformers' cache / ours:"
    )
    rows = [f"| {' | '.join([name, *(column[name] for column in columns)])} |" for name in columns[0] if name]
    head = f"| | {' | '.join(column[''] for column in columns)} |"
    return "\n".join(["", caption, "", head, "|---" * (len(columns) + 1) + "|", *rows, ""])


def _column(path: Path, report: dict) -> dict[str, str]:
    model, memory, kl, longest = report["model"], report["memory"], report["kl"], report["longest_context"]
    base, differs = report["baseline"], report["first_differing_token"]
    attention = "" if base["attention"] == "default" else f", {base['attention']}"

    def both(values: dict, form: str, scale: float = 1) -> str:
        return " / ".join(form.format(scale * values[arm]) for arm in ("baseline", "turboquant"))

    def megabytes(what: str) -> str:
        return both({arm: memory[f"{arm}_{what}"] for arm in ("baseline", "turboquant")}, "{:.1f}", 1e-6)

    return {
        "": f"[{path.stem.split('_')[1]}](../{path.relative_to(ROOT)})",
        "model": f"{model['name']}, {model['layers']} layers, {model['q_heads']}/{model['kv_heads']} heads of {model['head_dim']}",
        "transformers' cache": base["cache"] + attention,
        "prompt, answer (tokens)": f"{report['prompt_tokens']:,}, {report['new_tokens']['baseline']}",
        "time to first token, ms": both(report["time_to_first_token_s"], "{:.1f}", 1e3),
        "time per token, ms": both({arm: speed["time_per_token_s"] for arm, speed in report["speed"].items()}, "{:.2f}", 1e3),
        "tokens/s": both(report["tokens_per_s"], "{:.1f}"),
        "cache, 16 bits / ours, MB": f"{both(report['cache_bytes'], '{:.1f}', 1e-6)}: {report['ratio']:.2f} x smaller",
        "of the allocator, MB": megabytes("released"),
        "most beyond the weights, MB": megabytes("peak"),
        "longest context, tokens": "" if longest is None else f"{both(longest, '{:,}')}: {longest['turboquant'] / longest['baseline']:.2f} x as long",
        "first differing token": f"none of {report['new_tokens']['baseline']}" if differs is None else str(differs + 1),
        "KL, mean; 99 %; 99.9 % (nats)": f"{kl['mean']:.5f}; {kl['p99']:.4f}; {kl['p999']:.4f}",
        "same most likely token": f"{100 * report['top1']:.1f} %",
        "commit": report["commit"],
        "positions compared": f"{sum(part['positions'] for part in report['fidelity'].values() if isinstance(part, dict)):,}",
    }


def split(document: str) -> tuple[str, str, str]:
    return markers.split(document, BEGIN, END)


if __name__ == "__main__":
    before, _, after = split(DOCUMENT.read_text())
    DOCUMENT.write_text(before + rendered_in_full() + after)
