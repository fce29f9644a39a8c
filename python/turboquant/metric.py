# SPDX-License-Identifier: Apache-2.0
"""What an error of a key costs, from the queries of the call that is coded first (docs/adr/0008)."""

from __future__ import annotations

import torch

from . import ops
from .carrier import rows_of

QUERY_TOKENS = 2048  # about, of all sequences together, evenly spaced in each
PARTS = 16  # of the queries, where their number allows
DAMPING = 0.25  # of the mean square, in every direction
PRIOR = 4.5  # and as many times head_dim over the number of queries: few say little


def key_metric(query: torch.Tensor, starts: torch.Tensor | None, query_signs: torch.Tensor, base: torch.Tensor | None) -> torch.Tensor:
    """query [batch, q_heads, tokens, head_dim] -> `key_metric` of ops.encode, int8 [kv_heads, head_dim, head_dim].

    The second moment of the rotated queries, damped, up to a factor. Queries become integers below 2^15, and float64 holds sums of
    their products exactly: so the bytes do not depend on a machine's order of additions. Padding and what is not finite count as 0.
    """
    batch, q_heads, tokens, head_dim = query.shape
    kv_heads = query_signs.shape[0]
    step = min(-(-batch * tokens // QUERY_TOKENS), max(tokens // 8, 1)) or 1  # of many sequences still eight tokens each
    sample = rows_of(query[:, :, ::step]).float()
    rotated = ops.rotate(sample, query_signs.repeat_interleave(q_heads // kv_heads, 0), base)
    counted = rotated.isfinite().all(-1, keepdim=True)
    if starts is not None:
        token = torch.arange(0, tokens, step, device=query.device)
        counted = counted & (token >= starts[:, None]).reshape(-1, 1, 1)
    x = torch.where(counted, rotated, 0.0).transpose(0, 1).reshape(kv_heads, -1, head_dim)
    queries = counted.view(-1, kv_heads, q_heads // kv_heads).sum((0, 2)).clamp_min(1).double()
    largest = torch.linalg.vector_norm(x, torch.inf, (1, 2), keepdim=True).clamp_min(1e-30)
    x = (x * (32767 / largest)).round().double()
    # In parts, which a GPU multiplies side by side: a head's product alone is a few blocks that go through all queries.
    parts = x.unflatten(1, (PARTS if x.shape[1] % PARTS == 0 else 1, -1))
    moment = (parts.mT @ parts).sum(1)
    diagonal = moment.diagonal(0, 1, 2)
    diagonal += diagonal.sum(-1, keepdim=True) * (DAMPING / head_dim + PRIOR / queries)[:, None]
    return (moment * (127 / diagonal.amax(-1).clamp_min(1.0))[:, None, None]).round().to(torch.int8)


def metric_for(metric: torch.Tensor | None, tokens: int) -> torch.Tensor | None:
    """The metric that a call of so many tokens a sequence is coded with. A single token is a step of decoding: it is coded by the
    launch that attends, which a metric's moves would make longer (docs/adr/0008)."""
    return metric if tokens > 1 else None
