# SPDX-License-Identifier: Apache-2.0
"""Times of launches: in a CUDA graph over rotating buffers, and of single calls."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

WARM_MS = 60
SPIN_CYCLES = 900_000  # about 0.5 ms: the host is ahead of the device when what is timed starts
LONGEST_GRAPH_US = 40_000


@dataclass(frozen=True)
class Times:
    """Microseconds a launch."""

    median: float
    least: float
    most: float
    launches: int  # in a graph; 1: single calls

    @classmethod
    def of(cls, us: Sequence[float], launches: int) -> Times:
        return cls(statistics.median(us), min(us), max(us), launches)

    def json(self) -> dict:
        return {"median": round(self.median, 3), "min": round(self.least, 3), "max": round(self.most, 3), "launches": self.launches}


def launch_count(buffers: int, expected_us: float) -> int:
    """max(24, buffers), less where that graph would take longer than LONGEST_GRAPH_US; never below 4."""
    return max(4, min(max(24, buffers), int(LONGEST_GRAPH_US / max(expected_us, 1e-3))))


class Clock:
    """Warms the device before each timing with plain reads, so that clocks are those of a busy device."""

    def __init__(self, replays: int = 8, warm_ms: float = WARM_MS):
        self.replays, self.warm_ms = replays, warm_ms
        self.buffer = torch.zeros(1 << 28, dtype=torch.float32, device="cuda")  # 1 GiB
        begin, end = self._events()
        self.buffer.sum()
        begin.record()
        self.buffer.sum()
        end.record()
        end.synchronize()
        self.read_ms = begin.elapsed_time(end)

    @staticmethod
    def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
        return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def warm(self, ms: float | None = None) -> None:
        for _ in range(int((self.warm_ms if ms is None else ms) / self.read_ms) + 1):
            self.buffer.sum()

    def graph(self, launches: Sequence[Callable], count: int) -> tuple[Times, object, int]:
        """`count` launches in one graph, going round `launches`. Also what the last launch returned, and which it was."""
        for launch in launches[:2]:  # whatever is loaded or chosen at a first call
            launch()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(count):
                result = launches[i % len(launches)]()
        graph.replay()
        self.warm()
        us = []
        for _ in range(self.replays):
            begin, end = self._events()
            torch.cuda._sleep(SPIN_CYCLES)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            us.append(1e3 * begin.elapsed_time(end) / count)
        self._graph = graph  # keeps `result` alive until the next one
        return Times.of(us, count), result, (count - 1) % len(launches)

    def single(self, launches: Sequence[Callable], count: int = 24) -> Times:
        """Events around one eager call, which includes about 5 us that an empty kernel takes as well."""
        self.warm()
        us = []
        for i in range(count):
            begin, end = self._events()
            torch.cuda._sleep(SPIN_CYCLES)
            begin.record()
            launches[i % len(launches)]()
            end.record()
            end.synchronize()
            us.append(1e3 * begin.elapsed_time(end))
        return Times.of(us, 1)
