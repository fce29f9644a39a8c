# SPDX-License-Identifier: Apache-2.0
"""KL against bytes a token: the picture of the project."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402  after the backend is chosen
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.text import Text  # noqa: E402

from fidelity import tables  # noqa: E402
from turboquant.benchmark.plot import INK, OURS, STYLE  # noqa: E402

COLOURS = {"ours": OURS, "paper": "#d1495b", "peer": "#7a828a", "peer as run": "#e08e0b", "sixteen": INK}
LABELS = {
    "ours": "this project", "paper": "the paper's codecs", "peer": "other formats, everything coded",
    "peer as run": "other formats, as their users run them", "sixteen": "16 bits",
}  # fmt: skip
LEAST_KL = 1e-6


def save_plot(report: dict, path: Path) -> None:
    rows, texts = tables.richest(report)
    rows = [row for row in rows if row["group"] in COLOURS]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(10, 6.5), layout="constrained")
        axes.set(xscale="log", yscale="log", xlabel="bytes a token and KV head (head_dim 64; 16 bits: 256), windows included")
        axes.set_ylabel("mean KL to the fp32 cache, nats")
        axes.grid(which="major", color="#e6e8ea", linewidth=0.8)
        axes.set_axisbelow(True)
        labels: list[tuple[str, tuple[float, float], str]] = []
        for group, colour in COLOURS.items():
            part = [v for v in rows if v["group"] == group]
            x = [v["bytes_per_token"]["mean"] for v in part]
            y = [max(v["kl"]["mean"], LEAST_KL) for v in part]
            spread = [[max(a - max(v["kl"]["least"], LEAST_KL), 0) for a, v in zip(y, part)], [max(v["kl"]["most"] - a, 0) for a, v in zip(y, part)]]
            axes.errorbar(x, y, yerr=spread, fmt="o", color=colour, markersize=5, elinewidth=0.7, alpha=0.9, label=LABELS[group])
            labels += [(v["variant"], (a, b), colour) for v, a, b in zip(part, x, y)]
        ticks = [32, 48, 64, 80, 100, 128, 192, 256]
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.set_xticks([], minor=True)
        axes.legend(loc="lower left")
        model, tokens = rows[0]["model"], rows[0]["tokens"]
        axes.set_title(f"{model}, {len(texts)} texts of {tokens:,} tokens, teacher-forced; bars: least to most over the texts")
        _place(figure, axes, labels)
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _place(figure: Figure, axes: Axes, labels: list[tuple[str, tuple[float, float], str]]) -> None:
    """Each label at the first place about its point, near to far, where it covers no other; a thin line leads to the point."""
    figure.canvas.draw()
    places = [(dx, dy, side) for dy in (0, 8, -8, 16, -16, 24, -24, 32, -32) for dx, side in ((7, "left"), (-7, "right"))]
    taken = []
    for text, at, colour in sorted(labels, key=lambda label: label[1]):
        for dx, dy, side in places:
            line = {"arrowstyle": "-", "linewidth": 0.4, "color": colour}
            note = axes.annotate(
                text, at, xytext=(dx, dy), textcoords="offset points", fontsize=6, color=colour, ha=side, va="center", arrowprops=line
            )
            note.draw(figure.canvas.get_renderer())
            box = note.get_bbox_patch().get_window_extent() if note.get_bbox_patch() else Text.get_window_extent(note)
            if not any(box.overlaps(other) for other in taken) or (dx, dy, side) == places[-1]:
                taken.append(box)
                break
            note.remove()
