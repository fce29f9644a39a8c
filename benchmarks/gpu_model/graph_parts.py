# SPDX-License-Identifier: Apache-2.0
"""Where a compiled step's time on the device goes: the kernels of its CUDA graph by kind, and the gaps between them.

torch's profiler slows every later launch of a graph in its process, so this comes after all that is timed."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from . import compiled
from .steps import Decoder, attention, synchronize

# The first kind of which a word is in the kernel's name.
KINDS = {
    "attention": ("turboquant", "scaled_dot_product", "sdpa", "cudnn"),
    "matrix products": ("nvjet", "gemm", "gemv", "splitKreduce", "_mm_"),
}
STEPS = 3


def measure(model: PreTrainedModel, batch: int, tokens: int) -> list[dict]:
    """Of each arm, its last step."""
    choose = compiled.compiled_step()
    try:
        caches = compiled.caches(model, batch, tokens)
        return [
            {"arm": arm, "batch": batch, "tokens": tokens} | _profiled(Decoder(model, caches[arm], arm, batch, choose))
            for arm in ("static", "turboquant")
        ]
    finally:
        torch._dynamo.reset()


def _profiled(decoder: Decoder) -> dict:
    with attention(decoder.model, decoder.arm), tempfile.TemporaryDirectory() as folder:
        for _ in range(STEPS):
            decoder.step()
        synchronize(decoder.model.device)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            for _ in range(STEPS):
                decoder.step()
                synchronize(decoder.model.device)
        path = Path(folder) / "trace.json.gz"
        seen.export_chrome_trace(str(path))
        return read(path)


def read(path: Path) -> dict:
    """Of a trace of torch's profiler: the last graph launched."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    launch = max((e for e in events if e.get("name") == "cudaGraphLaunch"), key=lambda e: e["ts"])["args"]["correlation"]
    on_device = (e for e in events if e.get("cat", "").startswith(("kernel", "gpu_mem")) and e["args"].get("correlation") == launch)
    return parts([(e["name"], e["ts"], e["ts"] + e["dur"]) for e in on_device])


def parts(kernels: list[tuple[str, float, float]]) -> dict:
    """`kernels`: name, begin and end in us. Kernels of a kind that overlap count once."""
    kinds: dict[str, list] = {kind: [] for kind in (*KINDS, "the rest")}
    for name, begin, end in kernels:
        kinds[kind_of(name)].append((begin, end))
    span = max(end for *_, end in kernels) - min(begin for _, begin, _ in kernels)
    found = {kind: {"kernels": len(times), "us": round(covered(times), 1)} for kind, times in kinds.items()}
    gaps = span - covered([(begin, end) for _, begin, end in kernels])
    return {"us": round(span, 1), "kinds": found, "gaps_us": round(gaps, 1)}


def kind_of(name: str) -> str:
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "the rest")


def covered(times: list[tuple[float, float]]) -> float:
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(times):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
