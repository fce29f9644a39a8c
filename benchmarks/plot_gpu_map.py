# SPDX-License-Identifier: Apache-2.0
"""Draws the map over batch x length that attend_gpu.py --map measured.

    python3 benchmarks/plot_gpu_map.py benchmarks/results/attend_gpu_map_h100.json docs/images/attend_gpu_map_h100.svg
"""

from __future__ import annotations

import argparse
import json

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PANELS = (("ratio_to_cudnn", "times as fast as cuDNN bf16", 1, "{:.2f}"), ("share_of_copy", "% of copy bandwidth", 100, "{:.0f}"))
PANEL_INCHES, CELL_INCHES = 1.6, 0.55


def table(cells: list[dict], value: str, scale: float) -> tuple[list[int], list[int], list[list[float]]]:
    """Batches, lengths, and a row a batch; NaN where nothing was measured."""
    batches = sorted({cell["sequences"] for cell in cells})
    lengths = sorted({cell["longest"] for cell in cells})
    found = {(cell["sequences"], cell["longest"]): cell[value] for cell in cells}
    rows = [[found.get((batch, length)) for length in lengths] for batch in batches]
    return batches, lengths, [[float("nan") if x is None else scale * x for x in row] for row in rows]


def draw(report: dict):
    batches, lengths, _ = table(report["cells"], "share_of_copy", 1)
    size = (PANEL_INCHES + CELL_INCHES * len(lengths), 2 * PANEL_INCHES + 2 * CELL_INCHES * len(batches))
    figure, panels = plt.subplots(2, 1, figsize=size, layout="constrained")
    for axes, (value, title, scale, form) in zip(panels, PANELS):
        _, _, rows = table(report["cells"], value, scale)
        highest = max((x for row in rows for x in row if x == x), default=1)
        image = axes.imshow(rows, aspect="auto", cmap="viridis", vmin=0, origin="lower")
        for y, row in enumerate(rows):
            for x, number in enumerate(row):
                if number == number:
                    colour = "black" if number > 0.6 * highest else "white"
                    axes.text(x, y, form.format(number), ha="center", va="center", fontsize=7, color=colour)
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], rotation=45, ha="right")
        axes.set_yticks(range(len(batches)), batches)
        axes.set(title=title, xlabel="tokens a sequence", ylabel="sequences")
        figure.colorbar(image, ax=axes)
    figure.suptitle(f"attend, 4/4 bits, {report['device']}, commit {report['commit']}", fontsize=10)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("json")
    parser.add_argument("image", help="its suffix says the format")
    args = parser.parse_args()
    with open(args.json) as file:
        figure = draw(json.load(file))
    figure.savefig(args.image, dpi=150)


if __name__ == "__main__":
    main()
