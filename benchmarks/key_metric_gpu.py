# SPDX-License-Identifier: Apache-2.0
"""What making a layer's key metric of its queries takes on a GPU (docs/adr/0008).

    make gpu-package
    PYTHONPATH=build/cuda/python python3 -P benchmarks/key_metric_gpu.py --commit $(git rev-parse --short HEAD) --json out.json

Microseconds a call in a CUDA graph of 16, each on queries of its own, so out of cold caches. `all`: one
call that begins, adds every `step`-th row and makes the metric. `adds`: only adds. `makes`: of a call of no tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch  # noqa: E402
from gpu import facts, timing  # noqa: E402
from turboquant import ops  # noqa: E402
from turboquant.metric import QUERY_TOKENS  # noqa: E402

CALLS = 16
# head_dim, kv_heads, q_heads, sequences, tokens
ROWS = (
    (128, 8, 32, 1, 2048), (128, 8, 32, 8, 8192), (128, 8, 32, 1, 128), (128, 8, 32, 1, 1),
    (64, 3, 9, 1, 2048), (256, 4, 16, 1, 2048), (96, 8, 32, 1, 2048),
)  # fmt: skip


def measured(clock: timing.Clock, head_dim: int, kv_heads: int, q_heads: int, sequences: int, tokens: int) -> dict:
    step = max(1, sequences * tokens // QUERY_TOKENS)
    of = {"dtype": torch.bfloat16, "device": "cuda"}
    queries = [torch.randn(sequences, tokens, q_heads, head_dim, **of).transpose(1, 2) for _ in range(CALLS)]
    signs = torch.ones(kv_heads, head_dim, device="cuda")
    base = ops.hadamard_base(head_dim).cuda() if ops.hadamard_base_size(head_dim) > 1 else None
    moment = torch.zeros(kv_heads, head_dim, head_dim, dtype=torch.int32, device="cuda")
    metric = torch.empty_like(moment, dtype=torch.int8)

    def us(queries: list[torch.Tensor], begins: bool, made: torch.Tensor | None) -> float:
        calls = [partial(ops.key_metric, query, None, signs, base, step, begins, moment, made) for query in queries]
        return round(clock.graph(calls, CALLS)[0].median, 1)

    row = {"head_dim": head_dim, "kv_heads": kv_heads, "q_heads": q_heads, "sequences": sequences, "tokens": tokens, "step": step}
    row["all"] = us(queries, True, metric)
    moment.zero_()
    row["adds"] = us(queries, False, None)
    row["makes"] = us([query[:, :, :0] for query in queries], False, metric)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    clock = timing.Clock(replays=9)
    rows = []
    for shape in ROWS:
        rows.append(measured(clock, *shape))
        print(rows[-1], flush=True)
    result = {"what": " ".join(__doc__.split("\n\n")[-1].split()), "commit": args.commit, **facts.device_facts(clock), "rows": rows}
    if args.json:
        lines = ",\n".join("  " + json.dumps(row) for row in result.pop("rows"))
        args.json.write_text(json.dumps(result, indent=1)[:-2] + f',\n "rows": [\n{lines}\n ]\n}}\n')


if __name__ == "__main__":
    main()
