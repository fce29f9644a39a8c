# SPDX-License-Identifier: Apache-2.0
"""A comparison as one PNG: bytes, speed, and KL at each position."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402  after the backend is chosen
from matplotlib.axes import Axes  # noqa: E402

from turboquant.benchmark.compare import Comparison  # noqa: E402
from turboquant.benchmark.metrics import Fidelity  # noqa: E402
from turboquant.benchmark.tables import baseline_label  # noqa: E402

BASELINE, OURS, MISS, INK = "#9aa3ad", "#1565c0", "#d1495b", "#2b2f33"
PART_LABELS = {"text": "text", "continuation": "the baseline's own answer"}
PART_COLOURS = {"text": OURS, "continuation": "#e08e0b"}
LEAST_KL = 1e-7  # drawn for smaller ones: below it fp32 logits differ by rounding alone

STYLE = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#c4c9ce",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def save_plot(comparison: Comparison, path: str | Path) -> None:
    report = comparison.report
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(10, 7), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.14, h_pad=0.08)
        top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.45))
        bytes_axes, speed_axes, first_axes = top.subplots(1, 3)
        label = baseline_label(report)
        _bars(bytes_axes, "Cache (MB)", label, {key: value / 1e6 for key, value in report["cache_bytes"].items()}, "{:.1f}")
        bytes_axes.set_xlabel(f"{report['ratio']:.2f} x smaller than in 16 bits")
        speed, first = report["tokens_per_s"], report["time_to_first_token_s"]
        _bars(speed_axes, "Decoding (tokens/s)", label, speed, "{:.3g}")
        if None not in speed.values():
            speed_axes.set_xlabel(f"{speed['turboquant'] / speed['baseline']:.2f} x as fast")
        _bars(first_axes, "Time to first token (s)", label, first, "{:.3g}")
        first_axes.set_xlabel(f"{first['baseline'] / first['turboquant']:.2f} x as fast")
        _kl(bottom.subplots(), comparison.fidelity, report)
        figure.suptitle(_title(report), x=0.015, ha="left", fontsize=12)
        figure.savefig(path, dpi=150, format="png")
        plt.close(figure)


def _title(report: dict) -> str:
    model, setting = report["model"], report["setting"]
    first, recent = setting["fringe"]
    threads = f", {report['threads']} threads" if report["device"]["type"] == "cpu" else ""
    return (
        f"{model['name']}: TurboQuant K{setting['k_bits']}/V{setting['v_bits']}, fringe {first}+{recent}, against {baseline_label(report)}\n"
        f"{report['prompt_tokens']} prompt tokens, {model['dtype']}, {report['device']['name']}{threads}"
    )


def _bars(axes: Axes, title: str, label: str, values: dict[str, float | None], form: str) -> None:
    axes.set_title(title)
    heights = [values["baseline"] or 0.0, values["turboquant"] or 0.0]
    bars = axes.bar([label, "TurboQuant"], heights, color=(BASELINE, OURS), width=0.5)
    axes.bar_label(bars, [form.format(h) if h else "not measured" for h in heights], padding=3, fontweight="bold")
    axes.set_ylim(0, 1.18 * max(*heights, 1e-9))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="x", length=0)


def _kl(axes: Axes, fidelity: dict[str, Fidelity], report: dict) -> None:
    kl = report["kl"]
    if kl["mean"] is None:
        axes.set_title("KL divergence: nothing was measured")
        axes.set_axis_off()
        return
    axes.set_title(f"KL({report['baseline']['cache']} || TurboQuant) of the next token, teacher-forced: same most likely token at {100 * report['top1']:.1f} %")
    axes.set_yscale("log")
    for key, part in fidelity.items():
        if len(part):
            axes.plot(part.positions, part.kl.clamp_min(LEAST_KL), ".", markersize=3.5, alpha=0.65, color=PART_COLOURS[key], label=PART_LABELS[key])
    missed = [(part.positions[~part.agreed], part.kl[~part.agreed].clamp_min(LEAST_KL)) for part in fidelity.values() if len(part)]
    if any(len(positions) for positions, _ in missed):
        for index, (positions, values) in enumerate(missed):
            axes.plot(positions, values, "o", markersize=6, fillstyle="none", color=MISS, label="another most likely token" if index == 0 else None)
    lines = (("mean", kl["mean"], "-", "center"), ("99 %", kl["p99"], "--", "top"), ("99.9 %", kl["p999"], ":", "bottom"))
    for name, value, style, side in lines:
        axes.axhline(max(value, LEAST_KL), color=INK, linewidth=1, linestyle=style)
        axes.annotate(f" {name}: {value:.2g}", (1, max(value, LEAST_KL)), xycoords=("axes fraction", "data"), va=side, fontsize=9)
    axes.set_xlabel("position in the sequence (tokens)")
    axes.set_ylabel("nats")
    axes.grid(axis="y", color="#e6e8ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(loc="lower left", ncols=3, markerscale=1.8, bbox_to_anchor=(0, -0.32), borderaxespad=0)
