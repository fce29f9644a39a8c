# SPDX-License-Identifier: Apache-2.0
"""Decode attention on the CPU: pages of codes against torch's SDPA on dense caches, in one run.

    make bench-attend            # writes build/attend_cpu.json; committed runs are benchmarks/results/attend_cpu_*.json

One query a sequence over a history of `tokens`, default fringe. Each kernel table runs in a process of its
own (TQ_KERNELS is read once), each with SDPA beside it: fp32 and bf16 caches, grouped heads read in place
(enable_gqa). Calls rotate over buffers larger than the last-level cache would keep of one; the result is
checked against SDPA over the decoded history before anything is timed. Median and quartiles of `runs`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time

SHAPES = [  # name, tokens, query heads, KV heads, head_dim
    ("SmolLM2-135M", 2048, 9, 3, 64),
    ("Llama-3.1-8B", 2048, 32, 8, 128),
    ("Llama-3.1-8B", 8192, 32, 8, 128),
]
BITS = [(4, 4), (3, 3), (2, 2)]
BUFFERS = 4
FRINGE = (4, 28)


def quartiles(seconds: list[float]) -> dict[str, float]:
    low, mid, high = statistics.quantiles(seconds, n=4)
    return {"median_us": round(mid * 1e6, 1), "q1_us": round(low * 1e6, 1), "q3_us": round(high * 1e6, 1)}


def measure(shape: tuple, bits: tuple[int, int], runs: int) -> dict:
    import torch

    from turboquant import ops

    _, tokens, q_heads, kv_heads, d = shape
    k_bits, v_bits = bits
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(tokens, kv_heads, d, generator=generator) + 2 * torch.randn(kv_heads, d, generator=generator)
    values = torch.randn(tokens, kv_heads, d, generator=generator)
    signs = torch.stack([ops.random_signs(d, seed) for seed in range(kv_heads)])
    base = ops.hadamard_base(d)
    base = None if base.shape[0] == 1 else base
    pages_needed = (tokens + 63) // 64
    table = torch.arange(pages_needed, dtype=torch.int32)[None]
    empty, full = torch.zeros(1, dtype=torch.int32), torch.full((1,), tokens, dtype=torch.int32)
    pools = [torch.zeros(pages_needed, kv_heads, ops.page_bytes(d, k_bits, v_bits), dtype=torch.uint8) for _ in range(BUFFERS)]
    fringe = torch.zeros(1, kv_heads, sum(FRINGE), 2, d, dtype=torch.float16)
    starts = torch.tensor([0, tokens], dtype=torch.int32)
    for pool in pools:
        ops.encode(keys, values, starts, table, empty, None, pool, fringe, None, signs, signs, base, k_bits, v_bits, FRINGE[0])
    query = torch.randn(1, q_heads, d, generator=generator)
    one = torch.tensor([0, 1], dtype=torch.int32)

    def attend(i: int) -> torch.Tensor:
        return ops.attend(query, None, None, one, pools[i], table, full, None, fringe, None, signs, signs, base, None,
                          k_bits, v_bits, FRINGE[0], d**-0.5, 0.0, 0)[0]  # fmt: skip

    sdpa = torch.nn.functional.scaled_dot_product_attention
    decoded = ops.decode(pools[0], table, full, None, fringe, None, signs, signs, base, d, k_bits, v_bits, FRINGE[0],
                         tokens, torch.float32)  # fmt: skip
    expected = sdpa(query[None].transpose(1, 2), *decoded, enable_gqa=True)[0, :, 0]
    torch.testing.assert_close(attend(0)[0], expected, rtol=1e-4, atol=1e-4)

    dense = [[x.transpose(0, 1)[None].contiguous().clone() for x in (keys, values)] for _ in range(BUFFERS)]
    half = [[x.bfloat16() for x in pair] for pair in dense]
    q = query[None].transpose(1, 2)
    calls = {
        "turboquant": attend,
        "sdpa_fp32": lambda i: sdpa(q, *dense[i], enable_gqa=True),
        "sdpa_bf16": lambda i: sdpa(q.bfloat16(), *half[i], enable_gqa=True),
        "read_pages": lambda i: pools[i].view(torch.int64).sum(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(runs + 2):
        for name, call in calls.items():
            for i in range(BUFFERS):
                begin = time.perf_counter()
                call(i)
                if run >= 2:
                    seconds[name].append(time.perf_counter() - begin)
    row = {name: quartiles(times) for name, times in seconds.items()}
    row["ratio_to_sdpa_fp32"] = round(row["turboquant"]["median_us"] / row["sdpa_fp32"]["median_us"], 3)
    row["ratio_to_sdpa_bf16"] = round(row["turboquant"]["median_us"] / row["sdpa_bf16"]["median_us"], 3)
    row["page_bytes"] = pools[0].numel()
    return row


def child(runs: int, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    rows = []
    with torch.inference_mode():
        for shape in SHAPES:
            for bits in BITS:
                row = {"shape": shape[0], "tokens": shape[1], "q_heads": shape[2], "kv_heads": shape[3],
                       "head_dim": shape[4], "k_bits": bits[0], "v_bits": bits[1]}  # fmt: skip
                rows.append(row | measure(shape, bits, runs))
    print(json.dumps(rows))


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", help="where to write the result")
    parser.add_argument("--commit", help="of the sources, where there is no git")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.runs, args.threads)
    import torch

    git = ["git", "rev-parse", "--short=12", "HEAD"]
    commit = args.commit or subprocess.run(git, capture_output=True, text=True).stdout.strip()
    report = {"benchmark": "attend_cpu", "cpu": cpu_name(), "threads": args.threads, "torch": torch.__version__,
              "commit": commit, "runs": args.runs, "buffers": BUFFERS, "fringe": FRINGE, "kernels": {}}  # fmt: skip
    for kernels in ("portable", "avx2"):
        command = [sys.executable, __file__, "--child", "--runs", str(args.runs), "--threads", str(args.threads)]
        result = subprocess.run(command, env=os.environ | {"TQ_KERNELS": kernels}, capture_output=True, text=True)
        if result.returncode != 0:
            report["kernels"][kernels] = {"not_run": result.stderr.strip().splitlines()[-1]}
            print(f"{kernels}: {report['kernels'][kernels]['not_run']}")
            continue
        report["kernels"][kernels] = json.loads(result.stdout)
        for row in report["kernels"][kernels]:
            print(f"{kernels:9} {row['shape']:13} {row['tokens']:6} tokens {row['k_bits']}/{row['v_bits']}  "
                  f"{row['turboquant']['median_us']:9.1f} us   SDPA fp32 {row['sdpa_fp32']['median_us']:9.1f} "
                  f"(x {row['ratio_to_sdpa_fp32']:.2f})   bf16 {row['sdpa_bf16']['median_us']:9.1f} "
                  f"(x {row['ratio_to_sdpa_bf16']:.2f})   read {row['read_pages']['median_us']:8.1f}")  # fmt: skip
    if args.json:
        with open(args.json, "w") as out:
            json.dump(report, out, indent=1)
            out.write("\n")


if __name__ == "__main__":
    main()
