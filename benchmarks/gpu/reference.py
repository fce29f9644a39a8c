# SPDX-License-Identifier: Apache-2.0
"""Whether a row's result is right: attention in fp32 over what `decode` returns for the same pages."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import ops
from .problem import Problem
from .rows import Row


def history(problem: Problem, buffer: int, sequence: int) -> tuple[Tensor, Tensor]:
    """Keys and values [kv_heads, positions, head_dim] of a sequence in fp32, the call's own included."""
    arguments, row = problem.arguments[buffer], problem.row
    one = slice(sequence, sequence + 1)
    picked = {name: arguments[name][one] for name in ("page_table", "lengths", "fringe") if arguments[name] is not None}
    picked["page_table"] = picked["page_table"].contiguous()
    decoded = ops.call("decode", arguments | picked | {"max_tokens": row.lengths[sequence]})
    own = slice(sequence * row.queries, (sequence + 1) * row.queries)
    return tuple(
        old[0] if arguments[name] is None else torch.cat([old[0], arguments[name][own].transpose(0, 1).float()], dim=1)
        for old, name in zip(decoded, ("keys", "values"))
    )


def seen(row: Row, sequence: int, positions: int, device) -> Tensor:
    """[queries, positions]: what each query of a sequence sees."""
    query = row.lengths[sequence] + torch.arange(row.queries, device=device)[:, None]
    key = torch.arange(positions, device=device)
    mask = key <= query
    return mask & (key > query - row.window) if row.window else mask


def attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """[q_heads, queries, head_dim] in fp32, one KV head at a time so that a long prefill fits."""
    group = query.shape[0] // keys.shape[0]
    out = torch.empty_like(query, dtype=torch.float32)
    for head in range(keys.shape[0]):
        heads = slice(head * group, (head + 1) * group)
        scores = (query[heads].float() @ keys[head].T * scale).masked_fill_(~mask, float("-inf"))
        out[heads] = torch.softmax(scores, dim=-1) @ values[head]
    return out


def distance(out: Tensor, expected: Tensor) -> float:
    """Relative, of all outputs together; infinite where one is NaN."""
    error = float((out.float() - expected).norm() / expected.norm())
    return error if math.isfinite(error) else math.inf


CHECKED_QUERIES = 64  # of a sequence's, evenly spread


def errors(problem: Problem, out: Tensor, buffer: int = 0) -> tuple[float, float]:
    """The relative error of `out`, and torch's own SDPA's on the same values in out's dtype: first and last sequence."""
    row, arguments = problem.row, problem.arguments[buffer]
    worst = [0.0, 0.0]
    for sequence in sorted({0, len(row.lengths) - 1}):
        keys, values = history(problem, buffer, sequence)
        own = slice(sequence * row.queries, (sequence + 1) * row.queries)
        some = torch.linspace(0, row.queries - 1, min(row.queries, CHECKED_QUERIES), device=keys.device).round().long()
        query, result = (x[own][some].transpose(0, 1) for x in (arguments["query"], out))
        mask = seen(row, sequence, keys.shape[1], keys.device)[some]
        expected = attention(query, keys, values, mask, arguments["scale"])
        rounded = torch.nn.functional.scaled_dot_product_attention(
            query[None], keys[None].to(query.dtype), values[None].to(query.dtype),
            attn_mask=None if bool(mask.all()) else mask, scale=arguments["scale"], enable_gqa=True,
        )[0]  # fmt: skip
        for i, x in enumerate((result, rounded)):
            worst[i] = max(worst[i], distance(x, expected))
    return worst[0], worst[1]
