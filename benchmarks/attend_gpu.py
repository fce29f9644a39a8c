# SPDX-License-Identifier: Apache-2.0
"""Attention on pages of codes on a GPU: times, bandwidths, torch's SDPA beside them, targets.

    make gpu-bench                          # writes build/gpu-bench/attend_gpu.json; committed runs are benchmarks/results/attend_gpu_*.json
    python3 -P benchmarks/attend_gpu.py --libraries build --rows 'x 11,264' --json out.json
    python3 -P benchmarks/attend_gpu.py --libraries build --map --json map.json     # batch x length, for plot_gpu_map.py

Every result is checked before it is timed. `graph` is microseconds a launch in a CUDA graph that goes round buffers larger than any L2;
`chained` the same with each launch overlapping its predecessor, as a model's steps may; `single` one eager call between events.
GB/s are of the bytes that the row needs, no matter what was read. cuDNN is torch's SDPA with that backend over a dense bf16 cache.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch  # noqa: E402
from gpu import baselines, facts, grid, measure, ops, problem, report, rows, timing  # noqa: E402


def selected(pattern: str) -> list[rows.Row]:
    """Rows whose name matches, and those that their targets are relative to."""
    everything = rows.rows()
    wanted = {row.name for row in everything if re.search(pattern, row.name)}
    wanted |= {target.of for row in everything if row.name in wanted for target in row.targets if target.of}
    return [row for row in everything if row.name in wanted]


def failed(row: rows.Row, error: RuntimeError) -> dict:
    return measure.describe(row) | {
        "workspace_bytes": 0, "error": None, "sdpa_error": None, "right": False, "failed": str(error).splitlines()[0]
    }  # fmt: skip


def measured_rows(todo: list[rows.Row], args: argparse.Namespace, clock: timing.Clock, deadline: float):
    """The rows one after the other; what fails is reported, and the others go on."""
    dense = None if args.no_baselines else baselines.Dense(torch.cuda.mem_get_info()[0] // 2)
    pool = None
    for i, row in enumerate(todo):
        if time.monotonic() > deadline:
            print(f"out of time: {len(todo) - i} rows not run", flush=True)
            return
        begin = time.monotonic()
        try:
            if pool is None or pool.format != row.format:
                pool = None
                same = [other for other in todo if other.format == row.format]
                pool = problem.Pool(row, problem.pool_pages(same), "cuda")
            result = measure.measure(row, pool, dense, clock, own_tokens=not args.history_only, full=not args.quick)
        except RuntimeError as error:
            result = failed(row, error)
        yield result | {"seconds": round(time.monotonic() - begin, 2)}


def launch_only(todo: list[rows.Row], own_tokens: bool) -> None:
    """Each row's verb on two cold buffers, checking and timing nothing: for a profiler to look at."""
    for row in todo:
        pool = problem.Pool(row, problem.pool_pages([row]), "cuda")
        for launch in problem.Problem(row, pool, problem.buffers_for(row), own_tokens).launches(settled=False)[:2]:
            launch()
        torch.cuda.synchronize()
        print(row.name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", metavar="REGEX", help="only rows whose name matches")
    parser.add_argument("--map", action="store_true", help="times over batch and length instead of the rows")
    parser.add_argument("--launch-only", action="store_true", help="launch the rows, and only that: for a profiler")
    parser.add_argument("--quick", action="store_true", help="3 replays, no single calls, one baseline")
    parser.add_argument("--no-baselines", action="store_true", help="do not time torch's SDPA")
    parser.add_argument("--history-only", action="store_true", help="attend without the call's own keys and values")
    parser.add_argument("--budget", type=float, default=240, metavar="SECONDS", help="start no row after this")
    parser.add_argument("--libraries", metavar="FOLDER", help="load the operators' libraries from below FOLDER")
    parser.add_argument("--commit", default="unknown", help="of the sources, where there is no git")
    parser.add_argument("--json", metavar="FILE", help="where to write the result")
    args = parser.parse_args()
    deadline = time.monotonic() + args.budget
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    ops.load(args.libraries)
    if args.launch_only:
        launch_only([row for row in rows.rows() if re.search(args.rows, row.name)], not args.history_only)
        return 0
    clock = timing.Clock(replays=3 if args.quick else 8)
    result = {"schema": report.SCHEMA, "benchmark": "attend_gpu_map" if args.map else "attend_gpu"} | facts.device_facts(clock)
    result |= {"commit": args.commit, "flags": sys.argv[1:], "fringe": list(rows.FRINGE)} | facts.bandwidths(clock)
    clocks = ", ".join(f"{name} {value}" for name, value in result["under_load"].items())
    bandwidths = ", ".join(f"{name.removesuffix('_gb_s').replace('_', ' ')} {x:.0f}" for name, x in result.items() if name.endswith("_gb_s"))
    print(f"{result['device']}, {clocks}; GB/s: {bandwidths}")
    result["other_processes"] = [facts.other_processes()]

    def save() -> None:
        if args.json:
            with open(args.json, "w") as out:
                json.dump(result, out, indent=1)
                out.write("\n")

    with torch.inference_mode():
        if args.map:
            result["cells"] = grid.measure_all(clock, result["copy_gb_s"], deadline)
        else:
            todo, measured = selected(args.rows), []
            print(report.HEAD)
            for row in measured_rows(todo, args, clock, deadline):
                measured.append(row)
                result["rows"] = report.complete(measured, todo, result["copy_gb_s"])
                print(report.line(result["rows"][-1]), flush=True)
                save()  # a run that is stopped leaves what it has
    result["other_processes"].append(facts.other_processes())
    if any(result["other_processes"]):
        print("other programs used this GPU: these times are not to be trusted")
    save()
    return 0 if all(row["right"] for row in result.get("rows", [])) else 1


if __name__ == "__main__":
    sys.exit(main())
