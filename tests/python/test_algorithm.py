# SPDX-License-Identifier: Apache-2.0
"""docs/algorithm.md says what the integer tables cost. Here it is computed from src/core/tables.h and the law itself."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, optimize, special

ROOT = Path(__file__).parents[2]
DIM = 128
SIGMA = 1 / np.sqrt(DIM)
# Of a unit vector at d = 128, to 20 digits by other means (docs/algorithm.md quotes them too).
LLOYD_MAX_MSE = {2: 0.116000070275, 3: 0.0339659257939, 4: 0.0093147879538}


@dataclass(frozen=True)
class Table:
    bits: int
    magnitudes: np.ndarray
    thresholds: np.ndarray  # [candidates, magnitudes - 1]: levels, 255 for the largest coordinate


def tables() -> dict[str, Table]:
    """As tables.h gives them."""
    source = re.sub(r"//[^\n]*", "", (ROOT / "src/core/tables.h").read_text())
    number = r"\s*\d,"
    found = re.findall(rf"CodeTable (\w+)\{{\s*(\d),{number * 2}\s*\{{([\d,\s]+)\}},{number}\s*\{{(.*?)\}}\s*\}};", source, re.DOTALL)
    assert len(found) == 4, "tables.h changed its spelling"

    def numbers(text: str) -> list[int]:
        return [int(m) for m in re.findall(r"\d+", text)]

    return {
        name: Table(int(bits), np.array(numbers(list_), float), np.array([numbers(row) for row in re.findall(r"\{([^{}]+)\}", rows)]))
        for name, bits, list_, rows in found
    }


def density(x: np.ndarray) -> np.ndarray:
    log = special.gammaln(DIM / 2) - special.gammaln((DIM - 1) / 2) - np.log(np.pi) / 2
    return np.exp(log + (DIM - 3) / 2 * np.log1p(-(x**2)))


def excess(bits: int, magnitudes: np.ndarray) -> float:
    """Error of the table at its best step over Lloyd-Max's, minus 1."""

    def error(step: float) -> float:
        centroids = magnitudes * step * SIGMA
        edges = np.concatenate([[0.0], (centroids[1:] + centroids[:-1]) / 2, [1.0]])
        cells = (
            integrate.quad(lambda x, c=c: (x - c) ** 2 * density(x), a, b, epsabs=1e-15, points=[min(b, 6 * SIGMA)])[0]
            for c, a, b in zip(centroids, edges, edges[1:], strict=False)
        )
        return 2 * DIM * sum(cells)

    largest = {2: 1.5, 3: 2.13, 4: 2.68}[bits] / magnitudes[-1]
    best = optimize.minimize_scalar(error, bounds=(0.9 * largest, 1.1 * largest), method="bounded", options={"xatol": 1e-7})
    return best.fun / LLOYD_MAX_MSE[bits] - 1


LABELS = {"kKey4": "K, 4 bits", "kValue4": "V, 4 bits", "kEither3": "3 bits", "kEither2": "2 bits"}


@pytest.mark.parametrize("name", LABELS)
def test_the_documented_cost_of_an_integer_table_is_the_computed_one(name: str) -> None:
    row = re.search(rf"^\| {LABELS[name]} \| ([\d.]+) % \|$", (ROOT / "docs/algorithm.md").read_text(), re.MULTILINE)
    assert row, f"docs/algorithm.md has no row '{LABELS[name]}'"
    table = tables()[name]
    computed = 100 * excess(table.bits, table.magnitudes)
    digits = len(row[1].split(".")[1])
    assert float(row[1]) == pytest.approx(computed, abs=0.51 * 10**-digits)


def test_the_documented_tables_are_the_ones_in_the_source() -> None:
    doc = (ROOT / "docs/format.md").read_text()
    rows = {"kKey4": "K, 4 bits", "kValue4": "V, 4 bits", "kEither3": "K and V, 3 bits", "kEither2": "K and V, 2 bits"}
    for name, label in rows.items():
        magnitudes = " ".join(str(int(m)) for m in tables()[name].magnitudes)
        assert f"| {label} | {magnitudes} |" in doc


def mean_error(unit: np.ndarray, candidates: list[np.ndarray]) -> float:
    """Squared error of unit vectors, each coded as the candidate of the best cosine, at a norm-correct scale."""
    cosines = [(np.abs(unit) * codes).sum(1) / np.sqrt((codes**2).sum(1)) for codes in candidates]
    return 2 - 2 * np.max(cosines, axis=0).mean()


def by_levels(unit: np.ndarray, table: Table) -> list[np.ndarray]:
    """docs/adr/0002."""
    size = np.abs(unit)
    levels = np.rint((size * (255 / size.max(1, keepdims=True))).astype(np.float16)).astype(int)
    return [table.magnitudes[np.searchsorted(row, np.arange(256), side="right")][levels] for row in table.thresholds]


def by_cosine(unit: np.ndarray, table: Table) -> list[np.ndarray]:
    """Nine scales from 0.80 to 1.20 times the norm, as encode once searched."""
    top = {2: 1.5057, 3: 2.1300, 4: 2.6828}[table.bits]  # standard deviations that the largest magnitude stands for
    size = np.abs(unit) * np.sqrt(DIM) * table.magnitudes[-1] / top
    between = (table.magnitudes[1:] + table.magnitudes[:-1]) / 2
    return [table.magnitudes[np.searchsorted(between, size * (0.8 + 0.05 * s), side="right")] for s in range(9)]


@pytest.mark.parametrize("name", LABELS)
def test_the_candidates_cost_what_the_decision_says(name: str) -> None:
    random = np.random.default_rng(5)
    table = tables()[name]

    def ratio(vectors: np.ndarray) -> float:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return mean_error(unit, by_levels(unit, table)) / mean_error(unit, by_cosine(unit, table))

    gaussian, heavy = ratio(random.standard_normal((4000, DIM))), ratio(random.standard_t(10, (4000, DIM)))
    assert gaussian < 1.01
    assert heavy < 1.01

