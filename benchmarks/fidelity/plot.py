# SPDX-License-Identifier: Apache-2.0
"""KL against bytes a token: the picture of the project."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402  after the backend is chosen

from turboquant.benchmark.plot import INK, OURS, STYLE  # noqa: E402

COLOURS = {"ours": OURS, "paper": "#d1495b", "peer": "#7a828a", "peer as run": "#e08e0b", "sixteen": INK}
LABELS = {
    "ours": "this project", "paper": "the paper's codecs", "peer": "other formats, everything coded",
    "peer as run": "other formats, as their users run them", "sixteen": "16 bits",
}  # fmt: skip
LEAST_KL = 1e-6
MANY_TEXTS = 3  # fewer say little


def _richest(report: dict) -> tuple[list[dict], tuple[str, ...]]:
    """The set of texts with the most points, then the most texts."""
    rows = [v for v in report["variants"] if v["stress"] == "none" and v["tokens"] == 2048 and v["group"] in COLOURS]
    by_texts: dict[tuple[str, ...], list[dict]] = {}
    for row in rows:
        by_texts.setdefault(tuple(row["texts"]), []).append(row)
    texts = max((t for t in by_texts if len(t) >= MANY_TEXTS), key=lambda t: (len(by_texts[t]), len(t)), default=max(by_texts, key=len))
    return by_texts[texts], texts


def save_plot(report: dict, path: Path) -> None:
    rows, texts = _richest(report)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(10, 6.5), layout="constrained")
        axes.set(xscale="log", yscale="log", xlabel="bytes a token and KV head (head_dim 64; 16 bits: 256), windows included")
        axes.set_ylabel("mean KL to the fp32 cache, nats")
        axes.grid(which="major", color="#e6e8ea", linewidth=0.8)
        axes.set_axisbelow(True)
        for group, colour in COLOURS.items():
            part = [v for v in rows if v["group"] == group]
            x = [v["bytes_per_token"]["mean"] for v in part]
            y = [max(v["kl"]["mean"], LEAST_KL) for v in part]
            spread = [[max(a - max(v["kl"]["least"], LEAST_KL), 0) for a, v in zip(y, part)], [max(v["kl"]["most"] - a, 0) for a, v in zip(y, part)]]
            axes.errorbar(x, y, yerr=spread, fmt="o", color=colour, markersize=5, elinewidth=0.7, alpha=0.9, label=LABELS[group])
            for v, a, b in zip(part, x, y):
                axes.annotate(v["variant"], (a, b), xytext=(5, 3), textcoords="offset points", fontsize=6.5, color=colour)
        ticks = [32, 48, 64, 80, 100, 128, 192, 256]
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.set_xticks([], minor=True)
        axes.legend(loc="lower left")
        model, tokens = rows[0]["model"], rows[0]["tokens"]
        axes.set_title(f"{model}, {len(texts)} texts of {tokens:,} tokens, teacher-forced; bars: least to most over the texts")
        figure.savefig(path, dpi=150)
        plt.close(figure)
