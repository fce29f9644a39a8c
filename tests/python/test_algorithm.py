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


def mean_error(unit: np.ndarray, step: float, magnitudes: np.ndarray, percents: list[int], best_cosine: bool) -> float:
    """Squared error of unit vectors coded at the best of the scales, by cosine or by docs/adr/0002's distances."""
    levels = np.minimum(255, np.floor(np.abs(unit) * 64 * np.sqrt(DIM))).astype(int)
    middles, errors, scores = 2 * np.arange(256) + 1, [], []
    for percent in percents:
        levels_of_step = 64 * step * 100 / percent
        thresholds = np.floor(levels_of_step * (magnitudes[1:] + magnitudes[:-1]) / 2 + 0.5)
        by_level = magnitudes[np.searchsorted(thresholds, np.arange(256), side="right")]
        codes = by_level[levels]
        norm = np.sqrt((codes**2).sum(1))
        errors.append(2 - 2 * (np.abs(unit) * codes).sum(1) / norm)
        distances = np.floor((middles - np.floor(2 * levels_of_step * by_level + 0.5)) ** 2 / (32 if len(magnitudes) == 2 else 16))
        scores.append((middles[levels] * codes).sum(1) / norm if best_cosine else -distances[levels].sum(1))
    return np.choose(np.argmax(scores, axis=0), errors).mean()


@pytest.mark.parametrize("name", LABELS)
def test_the_search_by_distance_costs_what_the_decision_says(name: str) -> None:
    random = np.random.default_rng(5)
    _, step, magnitudes = tables()[name]

    def ratio(vectors: np.ndarray) -> float:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cosine = mean_error(unit, step, magnitudes, [80 + 5 * s for s in range(9)], best_cosine=True)
        return mean_error(unit, step, magnitudes, [78 + 6 * s for s in range(8)], best_cosine=False) / cosine

    assert ratio(random.standard_normal((4000, DIM))) < 1.004
    assert ratio(random.standard_t(10, (4000, DIM))) < 1.001
