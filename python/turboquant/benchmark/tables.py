# SPDX-License-Identifier: Apache-2.0
"""A comparison as text."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from turboquant.benchmark.compare import Comparison


def show(comparison: Comparison, console: Console) -> None:
    report = comparison.report
    console.print(_table(report, console))
    console.print(_notes(report), style="dim", highlight=False, markup=False)
    for key, title in (("baseline", f"{report['baseline']['cache']} answers"), ("turboquant", "TurboQuantCache answers")):
        console.print(f"\n[bold]{title}[/bold]")
        console.print(Padding(escape(comparison.texts[key]) or "(nothing)", (0, 2)), highlight=False)
    console.print()


def _table(report: dict, console: Console) -> Table:
    model, setting = report["model"], report["setting"]
    title = f"{model['name']}, {report['prompt_tokens']} prompt tokens, {model['dtype']}, {report['device']['name']}, {report['threads']} threads"
    table = Table(title=escape(title), box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII2, title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column(baseline_label(report), justify="right")
    table.add_column(f"TurboQuant K{setting['k_bits']}/V{setting['v_bits']}", justify="right")
    table.add_column("", justify="right")

    base, ours = report["cache_bytes"]["baseline"], report["cache_bytes"]["turboquant"]
    table.add_row("cache, in 16 bits / ours", megabytes(base), megabytes(ours), f"{report['ratio']:.2f} x smaller")
    as_run = report["memory"]["baseline_as_run"]
    if as_run != base:
        table.add_row(f"cache, as run ({model['dtype']})", megabytes(as_run), megabytes(ours), f"{as_run / ours:.2f} x smaller")
    freed = report["memory"]["baseline_released"], report["memory"]["turboquant_released"]
    if None not in freed:
        table.add_row("memory freed with it", megabytes(freed[0]), megabytes(freed[1]), "")
    peaks = report["memory"]["baseline_peak"], report["memory"]["turboquant_peak"]
    if None not in peaks:
        table.add_row("most memory beyond the weights", megabytes(peaks[0]), megabytes(peaks[1]), "")
    if longest := report["longest_context"]:
        table.add_row("longest context that fits", *(f"{longest[key]:,} tokens" for key in ("baseline", "turboquant")), _longer(longest))
    first = report["time_to_first_token_s"]
    table.add_row("time to first token", *(f"{first[key]:.2f} s" for key in ("baseline", "turboquant")), _ratio(first["baseline"], first["turboquant"]))
    speed = report["tokens_per_s"]
    if None not in speed.values():
        steps = report["speed"]
        table.add_row("time per token, median", *(f"{1e3 * steps[key]['time_per_token_s']:.1f} ms" for key in speed), "")
        table.add_row("tokens/s", *(f"{value:.1f}" for value in speed.values()), _ratio(speed["turboquant"], speed["baseline"]))
    differs = report["first_differing_token"]
    same = "none: texts equal" if differs is None else f"{differs + 1} of {report['new_tokens']['baseline']}"
    table.add_row("first differing token", "", same, "")
    if report["kl"]["mean"] is not None:
        kl = report["kl"]
        table.add_row(f"KL to {report['baseline']['cache']}, mean", "", f"{kl['mean']:.5f}", "nats/token")
        table.add_row("KL, 99 % / 99.9 %", "", f"{kl['p99']:.4f} / {kl['p999']:.4f}", "")
        table.add_row("same most likely token", "", f"{100 * report['top1']:.1f} %", "")
    return table


def _notes(report: dict) -> str:
    parts = report["fidelity"]
    text, continuation = parts["text"]["positions"], parts["continuation"]["positions"]
    calls = parts["text_tokens_per_call"]
    pieces = [f"{continuation} of the baseline's own answer, one token a call"]
    if text:
        pieces.insert(0, f"{text} of the text, {calls} token{'s' if calls > 1 else ''} a call")
    return f"KL and agreement are teacher-forced, over {' and '.join(pieces)}; prefilled tokens are not counted."


def baseline_label(report: dict) -> str:
    baseline = report["baseline"]
    return baseline["cache"] + (f", {baseline['attention']}" if baseline["attention"] != "default" else "")


def _longer(tokens: dict[str, int]) -> str:
    return f"{tokens['turboquant'] / tokens['baseline']:.2f} x as long" if tokens["baseline"] else ""


def _ratio(numerator: float, denominator: float) -> str:
    return f"{numerator / denominator:.2f} x as fast"


def megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"
