# SPDX-License-Identifier: Apache-2.0
"""torch's SDPA over a dense bf16 cache, with the backend named: what a row is compared with."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .problem import COLD_BYTES, MAX_BUFFERS
from .rows import Row, dense_bytes
from .timing import Clock, Times, launch_count

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
FLOPS, BYTES_PER_US = 5e8, 3e6  # of a busy GPU, a microsecond: to guess how many launches fit


class Dense:
    """One buffer of random bf16 that every row cuts its keys and values from: no setup between rows."""

    def __init__(self, largest_bytes: int):
        self.largest_bytes = largest_bytes
        self.storage = torch.empty(0, dtype=torch.bfloat16, device="cuda")

    def _reserve(self, elements: int) -> None:
        if self.storage.numel() < elements:
            self.storage = torch.empty(0, dtype=torch.bfloat16, device="cuda")
            self.storage = torch.empty(elements, dtype=torch.bfloat16, device="cuda")
            for part in self.storage.split(1 << 28):
                part.normal_()

    def time(self, row: Row, backend: str, clock: Clock) -> Times | None:
        """None where the backend refuses the shape or the memory is not there. Lengths must be equal."""
        if len(set(row.lengths)) > 1:
            return None
        tokens = row.lengths[0] + (row.queries if row.queries > 1 else 0)
        shape = (len(row.lengths), row.kv_heads, tokens, row.head_dim)
        each = shape[0] * shape[1] * shape[2] * shape[3]
        buffers = max(2, min(MAX_BUFFERS, -(-COLD_BYTES // (4 * each))))
        if 4 * each * buffers > self.largest_bytes:
            buffers = 1
        if 4 * each > self.largest_bytes:
            return None
        self._reserve(2 * each * buffers)
        query = torch.randn(shape[0], row.q_heads, row.queries, row.head_dim, device="cuda").bfloat16()
        caches = [
            tuple(self.storage[(2 * i + j) * each : (2 * i + j + 1) * each].view(shape) for j in range(2)) for i in range(buffers)
        ]
        flops = 4 * query.numel() * tokens
        count = launch_count(buffers, max(flops / FLOPS, dense_bytes(row) / BYTES_PER_US))
        for make in (_causal_flash, _sdpa) if row.queries > 1 and backend == "flash" else (_sdpa,):
            try:
                return clock.graph([make(query, *cache, backend) for cache in caches], count)[0]
            except RuntimeError:  # a shape that the backend does not have
                torch.cuda.synchronize()
        return None


def _causal_flash(query, keys, values, _backend: str):
    """Aligned to the last key, as a prefill over history is; SDPA's own is_causal is aligned to the first."""
    return lambda: torch.ops.aten._scaled_dot_product_flash_attention(query, keys, values, 0.0, True)[0]


def _sdpa(query, keys, values, backend: str):
    def sdpa():
        with sdpa_kernel(BACKENDS[backend]):
            return torch.nn.functional.scaled_dot_product_attention(query, keys, values, enable_gqa=query.shape[1] > keys.shape[1])

    return sdpa
