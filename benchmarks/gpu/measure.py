# SPDX-License-Identifier: Apache-2.0
"""One row: check, then time it in every way, with its baselines."""

from __future__ import annotations

import math

import torch

from .baselines import Dense
from .problem import Pool, Problem, buffers_for
from .reference import errors
from .rows import Row, needed_bytes
from .timing import Clock, launch_count

BYTES_PER_US = 2.5e6  # to guess how many launches fit


def describe(row: Row) -> dict:
    lengths = sorted(row.lengths)
    return {
        "name": row.name, "verb": row.verb, "sequences": len(lengths), "shortest": lengths[0], "longest": lengths[-1],
        "tokens": sum(lengths), "queries": row.queries, "q_heads": row.q_heads, "kv_heads": row.kv_heads,
        "head_dim": row.head_dim, "k_bits": row.k_bits, "v_bits": row.v_bits, "window": row.window, "fringe": row.fringe, "metric": row.metric,
        "bytes": round(needed_bytes(row)),
    }  # fmt: skip


def _checked(problem: Problem) -> dict:
    """Errors of the row's result; {"error": None} where there is nothing to compare."""
    if problem.row.verb == "encode":
        return {"error": None, "sdpa_error": None, "right": True}  # its codes are compared byte by byte by the tests
    error, sdpa_error = errors(problem, problem.attend(0)[0])
    found = {"error": error, "sdpa_error": sdpa_error}
    return {name: x if math.isfinite(x) else None for name, x in found.items()} | {"right": error <= 2 * sdpa_error}


def _same(result, problem: Problem, buffer: int) -> bool:
    """The last launch of a graph gave what a call by itself gives, to the bit."""
    if problem.row.verb != "attend":
        return True
    return torch.equal(result[0], problem.attend(buffer)[0])


def measure(row: Row, pool: Pool, dense: Dense | None, clock: Clock, *, own_tokens: bool, full: bool) -> dict:
    """The row's part of the report. full: flash and single calls as well."""
    buffers = buffers_for(row)
    problem = Problem(row, pool, buffers, own_tokens)
    result = describe(row) | {"buffers": buffers, "workspace_bytes": problem.workspace_bytes()} | _checked(problem)
    if not result["right"]:
        return result
    queries_us = 4 * len(row.lengths) * row.q_heads * row.queries * max(row.lengths) * row.head_dim / 5e8
    expected = max(needed_bytes(row) / BYTES_PER_US, queries_us if row.queries > 16 and row.verb == "attend" else 0)
    us, count = {}, launch_count(buffers, expected)
    for name, settled in (("graph", False), ("chained", True)):
        us[name], last, buffer = clock.graph(problem.launches(settled), count)
        result["right"] = result["right"] and _same(last, problem, buffer)
    if full:
        us["single"] = clock.single(problem.launches(settled=False))
    result["us"] = {name: times.json() for name, times in us.items()}
    if dense is not None and row.verb == "attend" and not row.window:
        # Several queries are causal among themselves, which only FLASH aligns to the last key.
        for backend in ("flash",) if row.queries > 1 else ("cudnn", "flash") if full else ("cudnn",):
            times = dense.time(row, backend, clock)
            result[f"{backend}_us"] = times.json() if times else None
    return result
