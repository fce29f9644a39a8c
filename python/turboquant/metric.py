# SPDX-License-Identifier: Apache-2.0
"""What an error of a layer's keys costs, from its first tokens' queries (docs/adr/0008)."""

from __future__ import annotations

import torch

from . import ops
from .calibration import Calibration

QUERY_TOKENS = 2048  # of all sequences together: so many are enough
ALL_STEPS = 128  # seen, and of the single tokens that follow only
STEPS = 8  # every eighth, since each takes the host some microseconds
MADE = 64  # tokens, between two metrics


def key_metric(query: torch.Tensor, starts: torch.Tensor | None, query_signs: torch.Tensor, base: torch.Tensor | None) -> torch.Tensor:
    """query [batch, q_heads, tokens, head_dim] -> `key_metric` of ops.encode, int8 [kv_heads, head_dim, head_dim]."""
    growth = Growth(query.shape[1], query_signs)
    growth.see(query, starts, query_signs, base)
    return growth.metric


class Growth:
    """The metric of a layer from its first coded call until the queries of some QUERY_TOKENS were seen, and the sums that it is made of.
    It is made again in place, once in MADE tokens: what has its address goes on with the newest."""

    def __init__(self, q_heads: int, query_signs: torch.Tensor) -> None:
        kv_heads, head_dim = query_signs.shape
        self.moment = torch.empty((kv_heads, head_dim, head_dim), dtype=torch.int32, device=query_signs.device)
        self.metric = torch.empty_like(self.moment, dtype=torch.int8)
        # Twice as many are never seen: the last call begins with fewer, and brings so many at most.
        self.most = min(QUERY_TOKENS, ops.METRIC_QUERIES * kv_heads // q_heads // 2)
        self.tokens = 0  # seen
        self.passed = self.due = 0  # tokens that came, seen or not; and when the metric is to be made again
        self.steps = 0  # of one token a sequence, once not all are seen

    @property
    def done(self) -> bool:
        return self.tokens >= self.most

    def see(self, query: torch.Tensor, starts: torch.Tensor | None, query_signs: torch.Tensor, base: torch.Tensor | None) -> None:
        """query [batch, q_heads, tokens, head_dim] of a call, of a long one evenly spaced ones. `starts`: tokens of padding in it."""
        batch, _, tokens, _ = query.shape
        self.passed += batch * tokens
        if tokens == 1 and self.tokens >= ALL_STEPS:
            self.steps += 1
            if self.steps % STEPS:
                return
        step = max(-(-batch * tokens // self.most), 1)
        query = query if query.stride(3) == 1 else query.contiguous()
        begins, self.tokens = self.tokens == 0, self.tokens + batch * tokens // step
        make = self.passed >= self.due or self.done
        if make:
            self.due = self.passed + MADE
        ops.key_metric(query, starts, query_signs, base, step, begins, self.moment, self.metric if make else None)


def begun(calibration: Calibration | None, index: int, query_signs: torch.Tensor, base: torch.Tensor | None) -> Growth | None:
    """Of the queries that a calibration has of layer `index`."""
    queries = calibration.queries.get(index) if calibration else None
    if queries is None:
        return None
    kv_heads, head_dim = query_signs.shape
    if queries.shape[0] % kv_heads or queries.shape[2] != head_dim:
        raise ValueError(f"layer {index}: the calibration has queries {list(queries.shape)} for [kv_heads, head_dim] = [{kv_heads}, {head_dim}]")
    growth = Growth(queries.shape[0], query_signs)
    growth.see(queries[None].to(query_signs.device, non_blocking=True), None, query_signs, base)
    return growth
