# SPDX-License-Identifier: Apache-2.0
"""KL against bytes a token: the picture of the project."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402  after the backend is chosen
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.text import Text  # noqa: E402
from matplotlib.transforms import Bbox  # noqa: E402

from fidelity import tables  # noqa: E402
from turboquant.benchmark.plot import INK, OURS, STYLE  # noqa: E402

COLOURS = {"ours": OURS, "paper": "#d1495b", "peer": "#7a828a", "peer as run": "#e08e0b", "sixteen": INK}
LABELS = {
    "ours": "this project", "paper": "the paper's codecs", "peer": "other formats, everything coded",
    "peer as run": "other formats, as their users run them", "sixteen": "16 bits",
}  # fmt: skip
CROWDED = r"recipe (\d)/(?!\1)\d"  # unequal bits without a fringe: those with one are there
LEAST_KL = 1e-6


def save_plot(report: dict, path: Path) -> None:
    rows, texts = tables.richest(report)
    rows = [row for row in rows if row["group"] in COLOURS and not re.fullmatch(CROWDED, row["variant"])]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(10, 6.5), dpi=150, layout="constrained")
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
        figure.savefig(path)
        plt.close(figure)


def _place(figure: Figure, axes: Axes, labels: list[tuple[str, tuple[float, float], str]]) -> None:
    """Each label at the nearest place about its point where it covers no other label and no point; a thin line leads to the point."""
    figure.canvas.draw()
    figure.set_layout_engine("none")  # labels do not move the axes
    places = [(dx, dy) for dx in (7, -7, 24, -24, 48, -48) for dy in range(-96, 97, 6)]
    places.sort(key=lambda place: place[0] ** 2 + 4 * place[1] ** 2)
    points = [axes.transData.transform(at) for _, at, _ in labels]
    taken = [axes.get_legend().get_window_extent(), *(Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in points)]
    for text, at, colour in sorted(labels, key=lambda label: label[1]):
        line = {"arrowstyle": "-", "linewidth": 0.4, "color": colour}
        note = axes.annotate(text, at, xytext=(0, 0), textcoords="offset points", fontsize=6, color=colour, va="center", arrowprops=line)
        size, (x, y) = Text.get_window_extent(note, figure.canvas.get_renderer()), axes.transData.transform(at)

        def box(dx: float, dy: float) -> Bbox:
            left, middle = x + dx * figure.dpi / 72, y + dy * figure.dpi / 72
            return Bbox.from_bounds(left if dx > 0 else left - size.width, middle - size.height / 2, size.width, size.height)

        place = next((place for place in places if not any(box(*place).overlaps(other) for other in taken)), places[0])
        note.set(position=place, ha="left" if place[0] > 0 else "right")
        taken.append(box(*place))
