# SPDX-License-Identifier: Apache-2.0
"""Where an eager step's time goes: the host's by stages, then torch's profiler (operators, kernels) and Python's (functions) over a
few steps of each arm."""

from __future__ import annotations

import cProfile
import io
import pstats
import time

import torch
from torch.profiler import ProfilerActivity
from transformers import PreTrainedModel

from . import eager, stages
from .steps import Decoder, attention, synchronize, timed

STEPS = 5


def profile(model: PreTrainedModel, batch: int, tokens: int, lines: int = 22) -> tuple[str, dict]:
    """The text, and the stages for the run's file."""
    decoders = {name: decoder for name, decoder in eager.decoders(model, batch, tokens).items() if name != "default"}
    found = stages.stages(decoders, 30)
    parts = [stages.text(found)]
    for name, decoder in decoders.items():
        with attention(model, name):
            parts.append(_arm(name, decoder, lines))
    return "\n".join(parts), {"batch": batch, "tokens": tokens, "stages_ms": found}


def _arm(name: str, decoder: Decoder, lines: int) -> str:
    device = decoder.model.device
    wall = sorted(timed(decoder.step, device) for _ in range(9))[4]
    host = sorted(_submitted(decoder) for _ in range(9))[4]
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with torch.profiler.profile(activities=activities, acc_events=True) as seen:
        for _ in range(STEPS):
            decoder.step()
        synchronize(device)
    averages = seen.key_averages()
    python = cProfile.Profile()
    python.enable()
    for _ in range(STEPS):
        decoder.step()
    python.disable()
    synchronize(device)
    text = io.StringIO()
    pstats.Stats(python, stream=text).strip_dirs().sort_stats("tottime").print_stats(lines)
    by_device = averages.table(sort_by="self_device_time_total", row_limit=lines, max_name_column_width=60) if device.type == "cuda" else ""
    return "\n".join([
        f"==== {name}: {wall:.2f} ms a step, the host done after {host:.2f} ms; {STEPS} steps below",
        averages.table(sort_by="self_cpu_time_total", row_limit=lines, max_name_column_width=60), by_device, text.getvalue(),
    ])  # fmt: skip


def _submitted(decoder: Decoder) -> float:
    """Milliseconds until the host has queued a step on an idle device."""
    synchronize(decoder.model.device)
    begin = time.perf_counter()
    decoder.step()
    taken = 1e3 * (time.perf_counter() - begin)
    synchronize(decoder.model.device)
    return taken
