# SPDX-License-Identifier: Apache-2.0
"""What an error of a layer's keys costs, from its first tokens' queries (docs/adr/0008)."""

from __future__ import annotations

import torch

from . import ops
from .calibration import Calibration

QUERY_TOKENS = 2048  # of all sequences together: so many are enough, and half where a call of MADE or more ends
ALL_STEPS = 128  # seen, and of the single tokens that follow only
STEPS = 8  # every eighth, since each takes the host some microseconds
MADE = 64  # tokens, between two metrics


def key_metric(query: torch.Tensor, starts: torch.Tensor | None, query_signs: torch.Tensor, base: torch.Tensor | None) -> torch.Tensor:
    """query [batch, q_heads, tokens, head_dim] -> `key_metric` of ops.encode, int8 [kv_heads, head_dim, head_dim]."""
    growth = Growth(query.shape[1], query_signs)
    growth.see(query, starts, query_signs, base)
    return growth.metric


class Growth:
    """The metric of a layer from its first coded call until enough queries were seen, and the sums that it is made of.
    It is made again in place, once in MADE tokens: what has its address goes on with the newest."""

    def __init__(self, q_heads: int, query_signs: torch.Tensor) -> None:
        kv_heads, head_dim = query_signs.shape
        self.q_heads = q_heads
        self.moment = torch.empty((kv_heads, head_dim, head_dim), dtype=torch.int32, device=query_signs.device)
        self.metric = torch.empty_like(self.moment, dtype=torch.int8)
        # Three times as many are never seen: the last call begins with fewer, and brings fewer than twice as many.
        self.most = min(QUERY_TOKENS, ops.METRIC_QUERIES * kv_heads // q_heads // 3)
        self.tokens = 0  # seen, padding of those calls included
        self.passed = self.due = 0  # tokens that came, seen or not; and when the metric is to be made again
        self.steps = 0  # of one token a sequence, once not all are seen
        self.done = False  # enough were seen: no call adds its queries any more

    def copy(self) -> Growth:
        other = Growth(self.q_heads, self.moment[:, 0])  # as large
        other.moment.copy_(self.moment)
        other.metric.copy_(self.metric)
        other.tokens, other.passed, other.due, other.steps, other.done = self.tokens, self.passed, self.due, self.steps, self.done
        return other

    def passes(self, batch: int) -> bool:
        """Whether a step of one token a sequence is one of those that are not seen, which then is counted."""
        if self.tokens < ALL_STEPS or (self.steps + 1) % STEPS == 0:
            return False
        self.steps, self.passed = self.steps + 1, self.passed + batch
        return True

    def see(
        self, query: torch.Tensor, starts: torch.Tensor | None, query_signs: torch.Tensor, base: torch.Tensor | None, make: bool = False
    ) -> None:
        """query [batch, q_heads, tokens, head_dim] of a call, of a long one evenly spaced ones: `most` or more. `starts`: tokens of padding
        in it. `make`: the metric in any case."""
        batch, _, tokens, _ = query.shape
        if tokens == 1 and not make and self.passes(batch):
            return
        passed, steps = self.passed + batch * tokens, self.steps + (tokens == 1 and self.tokens >= ALL_STEPS)
        step = max(batch * tokens // self.most, 1)
        seen = self.tokens + batch * tokens // step
        done = seen >= (self.most // 2 if tokens >= MADE else self.most)
        make = make or done or passed >= self.due
        query = query if query.stride(3) == 1 else query.contiguous()
        ops.key_metric(query, starts, query_signs, base, step, self.tokens == 0, self.moment, self.metric if make else None)
        self.passed, self.steps, self.tokens, self.done = passed, steps, seen, done
        if make:
            self.due = passed + MADE


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
