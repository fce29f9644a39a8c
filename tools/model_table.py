#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of a whole model's times and bytes on a GPU, in docs/transformers.md and a short one in the README, from the
committed runs, benchmarks/results/model_gpu_*.json: tools/model_table.py

A run gets there by `make gpu-bench-model` and a copy of build/gpu-bench/model_gpu.json. tests/python/test_model_benchmark.py and
test_readme.py compare."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "tools"), str(ROOT / "benchmarks")]

import markers  # noqa: E402
from gpu_model.report import ARMS, WORDS  # noqa: E402

DOCUMENT, README = ROOT / "docs/transformers.md", ROOT / "README.md"
BEGIN, END = "<!-- model runs: written by tools/model_table.py -->\n", "<!-- end of model runs -->\n"
PAIRS = "A speed-up with brackets is the median of ratios of steps that ran one after the other."
LOOPS = 'Compiled steps are those of a loop that waits for none; "each waited for": single ones.'
HEAD = ["| | transformers | ours | target | reached | |", "|---|---|---|---|---|---|"]


def reports() -> list[tuple[Path, dict]]:
    """All committed runs, in the order of their names."""
    paths = sorted((ROOT / "benchmarks/results").glob("model_gpu_*.json"))
    return [(path, json.loads(path.read_text())) for path in paths]


def rendered_in_full() -> str:
    """docs/transformers.md's part; empty without a run."""
    return "\n".join(section(path, report) for path, report in reports())


def rendered() -> str:
    """The README's part."""
    return "\n".join(summary(path, report) for path, report in reports())


def summary(path: Path, report: dict) -> str:
    """The medians alone, of what was measured with a target."""
    met = [target["met"] for row in report["rows"] for target in row["targets"]]
    caption = (
        f"A model of Llama-3.1-8B's shape on an {report['device']}, bf16, 4/4 bits, default fringe; DynamicCache with the faster of torch's "
        f"attentions, StaticCache where compiled ([the run](benchmarks/results/{path.name}); {sum(m is True for m in met)} of {len(met)} targets met, "
        "[all of it](docs/transformers.md)). Times are medians; a ratio of eager steps is the median of paired steps' ratios, not that of the two medians:"
    )
    table = [f"| {' | '.join(_short(row))} |" for row in report["rows"] if row["targets"] and not row.get("failed")]
    return "\n".join(["", caption, "", "| | transformers | ours | |", "|---|---|---|---|", *table, ""])


def _short(row: dict) -> list[str]:
    for unit in ("ms", "us"):
        if times := row.get(unit):
            theirs, ours = times[row["baseline"]]["median"], times["turboquant"]["median"]
            return [_name(row), f"{theirs:.1f} {unit}", f"{ours:.1f} {unit}", f"{row.get('speedup', theirs / ours):.2f} x as fast"]
    if longest := row.get("longest"):
        theirs, ours = longest["flash"], longest["turboquant"]
        return [_name(row), f"{theirs:,} tokens", f"{ours:,} tokens", f"{ours / theirs:.2f} x as long"]
    theirs, ours = (row["bytes"][arm]["resident"] for arm in ("flash", "turboquant"))
    return [_name(row | {"name": f"cache after the prompt, {row['batch']} x {row['tokens']:,}"}), f"{theirs / 1e6:,.0f} MB", f"{ours / 1e6:,.0f} MB", f"{theirs / ours:.2f} x smaller"]


def _name(row: dict) -> str:
    """With inductor's options, and with its commit where that is not the report's."""
    notes = [*row.get("inductor", ()), *([f"commit {row['commit']}"] if row.get("commit") else ())]
    return f"{row['name']} ({', '.join(notes)})" if notes else row["name"]


def split(document: str) -> tuple[str, str, str]:
    return markers.split(document, BEGIN, END)


def section(path: Path, report: dict) -> str:
    clocks = report.get("under_load", {})
    run = f"[the run](../{path.relative_to(ROOT)})" if path.is_relative_to(ROOT) else path.name
    targets = [target["met"] for row in report["rows"] for target in row["targets"]]
    caption = (
        f"{report['device']} ({clocks.get('clocks.sm', '?')} and {clocks.get('clocks.mem', '?')} MHz under load), copy {report['copy_gb_s']:,.0f} "
        f"GB/s, torch {report['torch']}, transformers {report['transformers']}, commit {report['commit']} ({run}; "
        f"{sum(met is True for met in targets)} of {len(targets)} targets met):"
    )
    said = [text for text, key in ((PAIRS, "ratio"), (LOOPS, "waited_ms")) if any(key in row for row in report["rows"])]
    method = ["", " ".join(said)] if said else []
    return "\n".join(["", caption, "", *HEAD, *(line for row in report["rows"] for line in lines(row)), *method, ""])


def lines(row: dict) -> list[str]:
    """A line for the row, and one more for each target after the first."""
    if row.get("failed"):
        return [f"| {row['name']} | {row['failed']} | | | | **not measured** |"]
    targets = [_target(target, row) for target in row["targets"]] or [["", _plain_ratio(row), ""]]
    if not row.get("right", True):
        targets = [[*target[:2], "**wrong result**"] for target in targets]
    cells = [_name(row), *_values(row)]
    return [f"| {' | '.join(line)} |" for line in ([*cells, *targets[0]], *(["", "", "", *target] for target in targets[1:]))]


def _values(row: dict) -> list[str]:
    """What transformers' cache took, and what ours."""
    for unit in ("ms", "us"):
        if times := row.get(unit):
            base = row["baseline"]
            theirs = f"{ARMS[base]} {_spread(times[base])} {unit}"
            others = [f"{ARMS[arm]} {times[arm]['median']:.1f}" for arm in times if arm not in (base, "turboquant")]
            floor = f", floor {row['floor_ms']:.2f} ({times['turboquant']['median'] / row['floor_ms']:.2f} x)" if row.get("floor_ms") else ""
            floor += f", without a history {row['bare_ms']:.2f}" if row.get("bare_ms") else ""
            waited = {arm: f", each waited for {values['median']:.2f}" for arm, values in row.get("waited_ms", {}).items()}
            ours = f"{_spread(times['turboquant'])} {unit}{waited.get('turboquant', '')}{floor}"
            return ["; ".join([theirs + waited.get(base, ""), *others]), ours]
    if longest := row.get("longest"):
        more = [f"{arm.partition(', ')[2]} {count:,}" for arm, count in longest.items() if "," in arm]
        return [f"{longest['flash']:,} tokens", "; ".join([f"{longest['turboquant']:,} tokens", *more])]
    held = row["bytes"]
    return [
        f"{held[arm]['resident'] / 1e6:,.0f} MB; most beyond activations {max(held[arm]['prefill_extra'], held[arm]['decode_extra']) / 1e6:,.0f}"
        for arm in ("flash", "turboquant")
    ]


def _spread(values: dict) -> str:
    return f"{values['median']:.2f} ({values['p10']:.2f} to {values['p90']:.2f})"


def _plain_ratio(row: dict) -> str:
    """Of a row without a target: ours beside the baseline."""
    if "speedup" in row:
        return f"{row['speedup']:.2f} {WORDS['speedup']}"
    return f"{row['time_over']:.2f} {WORDS['time_over']}" if "time_over" in row else ""


def _target(target: dict, row: dict) -> list[str]:
    least = target["at_least"] is not None
    asked = f"{'>=' if least else '<='} {target['at_least'] if least else target['at_most']:g} {WORDS[target['what']]}"
    if target["value"] is None:
        return [asked, "", "not measured"]
    value = _spread(row["ratio"]) if target["what"] == "speedup" and "ratio" in row else f"{target['value']:.2f}"
    return [asked, value, "met" if target["met"] else "**missed**"]


if __name__ == "__main__":
    for document, part in ((DOCUMENT, rendered_in_full()), (README, rendered())):
        before, _, after = split(document.read_text())
        document.write_text(before + part + after)
