# SPDX-License-Identifier: Apache-2.0
"""What torch's allocator holds on the device. On a CPU nothing is counted, and all numbers are 0."""

from __future__ import annotations

import gc

import torch


def settle(device: torch.device) -> None:
    """Garbage is gone, and cached blocks are given back."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def requested(device: torch.device) -> int:
    """As allocated, without what the allocator rounds up."""
    return torch.cuda.memory_stats(device)["requested_bytes.all.current"] if device.type == "cuda" else 0


class Peak:
    """Most bytes allocated since it was made."""

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
