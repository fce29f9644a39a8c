#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A whole model on one GPU, with TurboQuantCache and with transformers' own caches: steps, first tokens, bytes, lengths, targets.

    make gpu-bench-model                    # writes build/gpu-bench/model_gpu.json; committed runs are benchmarks/results/model_gpu_*.json
    PYTHONPATH=build/cuda/python python3 -P benchmarks/model_gpu.py --rows '^eager' --quick
    PYTHONPATH=build/cuda/python python3 -P benchmarks/model_gpu.py --rows none --profile 8x11264

The model has random weights: Llama-3.1-8B's shape, or that of --config. Caches are filled with random keys and values, the baseline's
with what ours decode to, and a row's logits are compared before it is timed. All of a row's arms run in turn in one process;
times are medians with the 10 % and 90 % values.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Caches that grow by a token a step would fragment the device's memory, the baseline's most of all.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
sys.path.insert(0, str(Path(__file__).parent))

import torch  # noqa: E402
import transformers  # noqa: E402
from gpu import facts, timing  # noqa: E402
from gpu_model import graph_parts, kinds, profile, report, rows, subject  # noqa: E402
from gpu_model.run import Run  # noqa: E402
from transformers import PreTrainedModel  # noqa: E402

import turboquant  # noqa: E402

NO_TIME = "not run: the time was up"


def measured(model: PreTrainedModel, row: rows.Row, run: Run) -> dict:
    """What fails is reported, and the others go on."""
    begin = time.monotonic()
    try:
        with torch.no_grad():
            found = kinds.MEASURES[row.kind](model, row, run)
    except Exception as error:  # noqa: BLE001  whatever it is, it is this row's result
        found = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    gc.collect()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    return report.complete(row, found | {"seconds": round(time.monotonic() - begin, 2)})


def machine(commit: str) -> dict:
    clock = timing.Clock()
    result = {"schema": report.SCHEMA, "benchmark": "model_gpu"} | facts.device_facts(clock) | facts.bandwidths(clock)
    versions = {"transformers": transformers.__version__, "turboquant": turboquant.__version__}
    return result | versions | {"commit": commit, "flags": sys.argv[1:], "other_processes": [facts.other_processes()]}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", metavar="REGEX", help="only rows whose name matches")
    parser.add_argument("--quick", action="store_true", help="a quarter of the repetitions")
    parser.add_argument("--config", metavar="DIR", help="the folder of another model's config.json")
    parser.add_argument("--profile", metavar="BxT", help="then profile an eager step of B sequences of T tokens")
    parser.add_argument("--graph", metavar="BxT", help="then say where a compiled step's time on the device goes, as --profile")
    parser.add_argument("--inductor", nargs="+", default=[], metavar="NAME", help="switches of torch._inductor.config to turn on for compiled rows, as max_autotune_gemm")
    parser.add_argument("--budget", type=float, default=300, metavar="SECONDS", help="start no row that would take longer (default: %(default)s)")
    parser.add_argument("--commit", default="unknown", help="of the sources, where there is no git")
    parser.add_argument("--json", metavar="FILE", help="where to write the result")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    return args


def main() -> int:
    args = parse()
    deadline = time.monotonic() + args.budget
    result = machine(args.commit)
    print(f"{result['device']}, {result['under_load']}, copy {result['copy_gb_s']:.0f} GB/s", flush=True)
    torch.cuda.empty_cache()
    begin = time.monotonic()
    model = turboquant.enable(subject.random_model(subject.read_config(args.config), "cuda"))
    torch.cuda.synchronize()
    print(f"model: {sum(p.nbytes for p in model.parameters()) / 1e9:.2f} GB in {time.monotonic() - begin:.1f} s", flush=True)
    result["rows"] = []
    run = Run(args.quick, result["copy_gb_s"], dict.fromkeys(args.inductor, True))
    for row in rows.rows():
        if not re.search(args.rows, row.name):
            continue
        in_time = time.monotonic() + row.seconds < deadline
        result["rows"].append(measured(model, row, run) if in_time else report.complete(row, {"failed": NO_TIME}))
        print(report.line(result["rows"][-1]), flush=True)
        if args.json:  # a run that is stopped leaves what it has
            Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    if args.graph:
        with torch.no_grad():
            result["graphs"] = graph_parts.measure(model, *map(int, args.graph.split("x")))
        print(json.dumps(result["graphs"], indent=1))
        if args.json:
            Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    if args.profile:
        with torch.no_grad():
            text, result["profile"] = profile.profile(model, *map(int, args.profile.split("x")))
        print(text)
        if args.json:
            Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(row.get("failed", NO_TIME) == NO_TIME and row.get("right", True) for row in result["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
