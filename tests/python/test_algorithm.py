# SPDX-License-Identifier: Apache-2.0
"""docs/algorithm.md says what the integer tables cost. Here it is computed from src/core/tables.h and the law itself."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, special

ROOT = Path(__file__).parents[2]
DIM = 128
SIGMA = 1 / np.sqrt(DIM)
# Of a unit vector at d = 128, to 20 digits by other means (docs/algorithm.md quotes them too).
LLOYD_MAX_MSE = {2: 0.116000070275, 3: 0.0339659257939, 4: 0.0093147879538}


def tables() -> dict[str, tuple[int, float, np.ndarray]]:
    """name -> (bits, step in standard deviations, magnitudes), as tables.h gives them."""
    source = (ROOT / "src/core/tables.h").read_text()
    found = re.findall(r"CodeTable (\w+) = make_code_table\((\d), \d, ([\d.]+), \{([\d, ]+)\}\)", source)
    assert len(found) == 4, "tables.h changed its spelling"
    return {name: (int(bits), float(sigma), np.array([float(m) for m in list_.split(",")])) for name, bits, sigma, list_ in found}


def density(x: np.ndarray) -> np.ndarray:
    log = special.gammaln(DIM / 2) - special.gammaln((DIM - 1) / 2) - np.log(np.pi) / 2
    return np.exp(log + (DIM - 3) / 2 * np.log1p(-(x**2)))


def excess(bits: int, step: float, magnitudes: np.ndarray) -> float:
    """Error of the table over Lloyd-Max's, minus 1, with the thresholds on the grid of 1/64 of a standard deviation."""
    centroids = magnitudes * step * SIGMA
    thresholds = np.floor(64 * step * (magnitudes[1:] + magnitudes[:-1]) / 2 + 0.5) / 64 * SIGMA
    edges = np.concatenate([[0.0], thresholds, [1.0]])
    cells = (
        integrate.quad(lambda x, c=c: (x - c) ** 2 * density(x), a, b, epsabs=1e-15, points=[min(b, 6 * SIGMA)])[0]
        for c, a, b in zip(centroids, edges, edges[1:], strict=False)
    )
    return 2 * DIM * sum(cells) / LLOYD_MAX_MSE[bits] - 1


LABELS = {"kKey4": "K, 4 bits", "kValue4": "V, 4 bits", "kEither3": "3 bits", "kEither2": "2 bits"}


@pytest.mark.parametrize("name", LABELS)
def test_the_documented_cost_of_an_integer_table_is_the_computed_one(name: str) -> None:
    row = re.search(rf"^\| {LABELS[name]} \| ([\d.]+) % \|$", (ROOT / "docs/algorithm.md").read_text(), re.MULTILINE)
    assert row, f"docs/algorithm.md has no row '{LABELS[name]}'"
    computed = 100 * excess(*tables()[name])
    digits = len(row[1].split(".")[1])
    assert float(row[1]) == pytest.approx(computed, abs=0.51 * 10**-digits)


def test_the_documented_tables_are_the_ones_in_the_source() -> None:
    doc = (ROOT / "docs/format.md").read_text()
    rows = {"kKey4": "K, 4 bits", "kValue4": "V, 4 bits", "kEither3": "K and V, 3 bits", "kEither2": "K and V, 2 bits"}
    for name, label in rows.items():
        magnitudes = " ".join(str(int(m)) for m in tables()[name][2])
        assert f"| {label} | {magnitudes} |" in doc
