# SPDX-License-Identifier: Apache-2.0
"""Times over batch x length: where the kernel is good, and where it is not."""

from __future__ import annotations

import time

import torch

from .baselines import Dense
from .measure import measure
from .problem import Pool, pool_pages
from .report import complete
from .rows import Row
from .timing import Clock

BATCHES = tuple(1 << i for i in range(9))  # 1 .. 256
LENGTHS = tuple(256 << i for i in range(10))  # 256 .. 131,072


def cells() -> list[Row]:
    """The cheapest first: a run out of time lacks the largest."""
    grid = [Row(f"{batch} x {tokens:,}", (tokens,) * batch) for batch in BATCHES for tokens in LENGTHS]
    return sorted(grid, key=lambda row: sum(row.lengths))


def cell(row: dict) -> dict:
    """What the map keeps of a measured row."""
    kept = ("sequences", "longest", "bytes", "right", "error", "gb_s", "share_of_copy", "ratio_to_cudnn")
    us = {name: times["median"] for name, times in row.get("us", {}).items()}
    cudnn = row.get("cudnn_us")
    return {name: row[name] for name in kept} | {"us": us, "cudnn_us": cudnn["median"] if cudnn else None}


def measure_cell(row: Row, pool: Pool, dense: Dense, clock: Clock) -> dict:
    return measure(row, pool, dense, clock, own_tokens=True, full=False)


def measure_all(clock: Clock, copy_gb_s: float, deadline: float) -> list[dict]:
    todo = cells()
    pool = Pool(todo[0], pool_pages(todo), "cuda")
    dense = Dense(torch.cuda.mem_get_info()[0] * 3 // 4)
    measured = []
    for row in todo:
        if time.monotonic() > deadline:
            print(f"out of time: {len(todo) - len(measured)} shapes not run", flush=True)
            break
        measured.append(cell(complete([measure_cell(row, pool, dense, clock)], todo, copy_gb_s)[0]))
        last = measured[-1]
        share, ratio = last["share_of_copy"] or 0, last["ratio_to_cudnn"] or 0
        print(f"{row.name:<16} {last['us'].get('chained', 0):10.1f} us {100 * share:4.0f} % of copy {ratio:5.2f} x cuDNN", flush=True)
    return measured
