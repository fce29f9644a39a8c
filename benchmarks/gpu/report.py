# SPDX-License-Identifier: Apache-2.0
"""From measured rows to the report: derived numbers, targets, the printed table. Needs no GPU and no torch."""

from __future__ import annotations

from collections.abc import Callable

from .rows import Row, Target

SCHEMA = 1


def best_us(row: dict) -> float | None:
    """What targets speak of: chained launches, as the steps of a model are."""
    us = row.get("us") or {}
    times = us.get("chained") or us.get("graph")
    return times["median"] if times else None


def _over(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def _baseline(row: dict, name: str) -> float | None:
    times = row.get(f"{name}_us")
    return times["median"] if times else None


def derive(row: dict, copy_gb_s: float) -> dict:
    """GB/s, share of copy and ratios; None where something was not measured."""
    us = best_us(row)
    rate = _over(row["bytes"] / 1e3, us)
    return {
        "gb_s": rate,
        "share_of_copy": _over(rate, copy_gb_s),
        "ratio_to_cudnn": _over(_baseline(row, "cudnn"), us),
        "ratio_to_flash": _over(_baseline(row, "flash"), us),
    }


def _extra(row: dict, other: dict) -> float | None:
    mine, its = best_us(row), best_us(other)
    return None if mine is None or its is None else mine - its


# What a Target may be about: of a row, and of the row it is relative to.
VALUES: dict[str, Callable[[dict, dict], float | None]] = {
    "ratio_to_cudnn": lambda row, _: row["ratio_to_cudnn"],
    "ratio_to_flash": lambda row, _: row["ratio_to_flash"],
    "share_of_copy": lambda row, _: row["share_of_copy"],
    "workspace_mb": lambda row, _: row["workspace_bytes"] / 1e6 if row.get("us") else None,
    "time_over": lambda row, other: _over(best_us(row), best_us(other)),
    "rate_over": lambda row, other: _over(row["gb_s"], other.get("gb_s")),
    "extra_us": _extra,
}
WORDS = {
    "ratio_to_cudnn": "x cuDNN", "ratio_to_flash": "x flash", "share_of_copy": "of copy", "workspace_mb": "MB workspace",
    "time_over": "x the time of", "rate_over": "of the GB/s of", "extra_us": "us over",
}  # fmt: skip


def judge(target: Target, row: dict, others: dict[str, dict]) -> dict:
    """A target's entry: its value, and whether it is met (None: it was not measured)."""
    other = others.get(target.of, {}) if target.of else {}
    value = VALUES[target.what](row, other)
    least, most = target.at_least, target.at_most
    met = None if value is None else (least is None or value >= least) and (most is None or value <= most)
    return {"what": target.what, "of": target.of, "at_least": least, "at_most": most, "value": value, "met": met}


def complete(measured: list[dict], rows: list[Row], copy_gb_s: float) -> list[dict]:
    """Measured rows with what follows from them."""
    derived = [row | derive(row, copy_gb_s) for row in measured]
    by_name = {row["name"]: row for row in derived}
    targets = {row.name: row.targets for row in rows}
    return [row | {"targets": [judge(target, row, by_name) for target in targets[row["name"]]]} for row in derived]


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def target_text(target: dict) -> str:
    sign, bound = (">=", target["at_least"]) if target["at_least"] is not None else ("<=", target["at_most"])
    words = WORDS[target["what"]] + (f" {target['of']}" if target["of"] else "")
    verdict = {True: "met", False: "MISSED", None: "not measured"}[target["met"]]
    return f"{sign} {bound:g} {words}: {_number(target['value'], 2)}, {verdict}"


HEAD = f"{'':<36}{'graph':>9}{'chained':>9}{'single':>9}{'GB/s':>7}{'copy':>6}{'FLASH':>9}{'cuDNN':>9}{'ratio':>6}{'error':>9}  targets"


def line(row: dict) -> str:
    """A row of the printed table."""
    if row.get("failed"):
        return f"{row['name']:<36} FAILED: {row['failed']}"
    if not row["right"] and "us" not in row:
        found = " and torch's own ".join("not finite" if row[x] is None else f"{row[x]:.2e}" for x in ("error", "sdpa_error"))
        return f"{row['name']:<36} WRONG: error {found}"
    us = {name: times["median"] for name, times in row["us"].items()}
    share = row["share_of_copy"]
    cells = [
        *(f"{_number(us.get(name)):>9}" for name in ("graph", "chained", "single")),
        f"{_number(row['gb_s'], 0):>7}", f"{'-' if share is None else f'{100 * share:.0f}%':>6}",
        f"{_number(_baseline(row, 'flash')):>9}", f"{_number(_baseline(row, 'cudnn')):>9}", f"{_number(row['ratio_to_cudnn'], 2):>6}",
        f"{'-' if row['error'] is None else format(row['error'], '.1e'):>9}",
    ]  # fmt: skip
    wrong = "" if row["right"] else "  WRONG: a graph's result differs from a call's"
    return f"{row['name']:<36}{''.join(cells)}  {'; '.join(map(target_text, row.get('targets', [])))}{wrong}"
