# SPDX-License-Identifier: Apache-2.0
"""A row's tensors: a pool of encoded pages, and for each buffer a page table into it.

Launches rotate over buffers, which are disjoint pages of one pool, so that no launch finds its pages in the L2. Any pages make
a history, in any order: the tables are shuffled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import ops
from .rows import FRINGE, PAGE_TOKENS, Row, needed_bytes, page_bytes

COLD_BYTES = 336_000_000  # more than the L2 of any GPU several times over
MAX_BUFFERS = 160
CHUNK_TOKENS = 64 << 10  # encoded at a time
MAX_POOL_BYTES = 2 << 30
METRIC_TOKENS = 128  # whose queries a key metric is made of


def buffers_for(row: Row) -> int:
    """So many that a round of launches needs COLD_BYTES, at least two."""
    return max(2, min(MAX_BUFFERS, -(-COLD_BYTES // max(1, round(needed_bytes(row))))))


def pool_pages(rows: list[Row]) -> int:
    """For every buffer of the rows, which are of one format; at most MAX_POOL_BYTES of them."""
    head_dim, k_bits, v_bits, kv_heads = rows[0].format
    most = MAX_POOL_BYTES // (kv_heads * page_bytes(head_dim, k_bits, v_bits))
    return min(most, max(buffers_for(row) * len(row.lengths) * row.max_pages for row in rows))


class Basis:
    """Signs and the Hadamard base of a head size, without a balance."""

    def __init__(self, head_dim: int, kv_heads: int, device: str):
        signs = [
            torch.stack([torch.ops.turboquant.random_signs(head_dim, 10 * kind + head) for head in range(kv_heads)])
            for kind in range(2)
        ]
        base = torch.ops.turboquant.hadamard_base(head_dim)
        self.keys, self.values = (sign.to(device) for sign in signs)
        self.base = base.to(device) if base.shape[0] > 1 else None

    def arguments(self) -> dict:
        return {"key_signs": self.keys, "query_signs": self.keys, "value_signs": self.values, "base": self.base}


class Pool:
    """Encoded pages of one format. Keys have a common component in each channel, as real ones have."""

    def __init__(self, row: Row, pages: int, device: str):
        head_dim, k_bits, v_bits, kv_heads = self.format = row.format
        self.device, self.count = device, pages
        self.basis = Basis(head_dim, kv_heads, device)
        self.generator = torch.Generator(device).manual_seed(0)
        self.pages = torch.zeros(pages, kv_heads, page_bytes(head_dim, k_bits, v_bits), dtype=torch.uint8, device=device)
        common = 2 * self.normal(kv_heads, head_dim)
        for first in range(0, pages, CHUNK_TOKENS // PAGE_TOKENS):
            last = min(pages, first + CHUNK_TOKENS // PAGE_TOKENS)
            shape = ((last - first) * PAGE_TOKENS, kv_heads, head_dim)
            table = torch.arange(first, last, dtype=torch.int32, device=device)[None]
            ops.call("encode", self.arguments(table, (0,), shape[0]) | {
                "keys": (self.normal(*shape) + common).bfloat16(), "values": self.normal(*shape).bfloat16(),
            })  # fmt: skip

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def ints(self, values) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def key_metric(self, q_heads: int) -> Tensor:
        """int8 [kv_heads, head_dim, head_dim], of queries that look one way in each head, as real ones do."""
        head_dim, _, _, kv_heads = self.format
        query = self.normal(1, q_heads, METRIC_TOKENS, head_dim) + 2 * self.normal(1, q_heads, 1, head_dim)
        moment = torch.zeros(kv_heads, head_dim, head_dim, dtype=torch.int32, device=self.device)
        metric = torch.empty_like(moment, dtype=torch.int8)
        ops.call("key_metric", self.basis.arguments() | {
            "query": query.bfloat16(), "starts": None, "step": 1, "begins": True, "moment": moment, "metric": metric,
        })  # fmt: skip
        return metric

    def arguments(self, table: Tensor, lengths: tuple[int, ...], queries: int) -> dict:
        """Of every operator, but for the vectors: `queries` tokens a sequence after `lengths` in the pages."""
        head_dim, k_bits, v_bits, _ = self.format
        return self.basis.arguments() | {
            "pages": self.pages, "page_table": table, "lengths": self.ints(lengths),
            "token_starts": self.ints([queries * i for i in range(len(lengths) + 1)]),
            "starts": None, "fringe": None, "recent_starts": None, "fringe_first": 0, "sinks": None,
            "k_bits": k_bits, "v_bits": v_bits, "head_dim": head_dim, "scale": head_dim**-0.5, "softcap": 0.0,
            "window": 0, "max_tokens": max(lengths), "dtype": torch.float32, "settled": False, "workspace": None,
            "key_metric": None, "most_tokens": queries,
        }  # fmt: skip


class Problem:
    """A row on a pool: one set of arguments a buffer."""

    def __init__(self, row: Row, pool: Pool, buffers: int, own_tokens: bool = True):
        self.row, self.pool = row, pool
        sequences, needed = len(row.lengths), len(row.lengths) * row.max_pages
        tables = self._tables(buffers, needed).view(buffers, sequences, row.max_pages)
        tokens = sequences * row.queries

        def vectors(heads: int) -> Tensor:
            return pool.normal(tokens, heads, row.head_dim).bfloat16()

        shared = {"query": vectors(row.q_heads), "keys": None, "values": None, "window": row.window}
        if own_tokens or row.verb != "attend":
            shared |= {"keys": vectors(row.kv_heads), "values": vectors(row.kv_heads)}
        if workspace := self.workspace_bytes():
            shared["workspace"] = torch.zeros(workspace, dtype=torch.uint8, device=pool.device)
        if row.metric:
            shared["key_metric"] = pool.key_metric(row.q_heads)
        self.arguments = []
        for table in tables:
            arguments = pool.arguments(table, row.lengths, row.queries) | shared
            if row.fringe:
                shape = (sequences, row.kv_heads, sum(FRINGE), 2, row.head_dim)
                arguments |= {"fringe": pool.normal(*shape).half(), "fringe_first": FRINGE[0]}
            self.arguments.append(arguments)

    def _tables(self, buffers: int, needed: int) -> Tensor:
        """Disjoint, unless the pool is smaller than all of them together: then it is gone through again, anew shuffled."""
        rounds = -(-buffers * needed // self.pool.count)
        shuffles = [
            torch.randperm(self.pool.count, generator=self.pool.generator, device=self.pool.device) for _ in range(rounds)
        ]
        return torch.cat(shuffles)[: buffers * needed].to(torch.int32)

    def workspace_bytes(self) -> int:
        row, device = self.row, torch.device(self.pool.device)
        if row.verb == "encode":
            return 0
        index = (device.index or 0) if device.type == "cuda" else -1
        return torch.ops.turboquant.attend_workspace_bytes(
            row.head_dim, row.k_bits, row.v_bits, row.kv_heads, row.q_heads, len(row.lengths), len(row.lengths) * row.queries, index
        )

    def attend(self, buffer: int):
        """Attention alone: what the call returns."""
        return ops.call("attend", self.arguments[buffer])

    def launches(self, settled: bool) -> list:
        """For each buffer, a function that launches the row's verb and returns the outputs of attention, as `attend` does.

        settled: with the promise that lets a launch overlap its predecessor. It holds here, since every buffer is a layer of its own.
        """

        def launch(arguments: dict):
            if self.row.verb == "append":
                op, args = ops.bound("attend_encode", self._by_sequence(arguments) | {"settled": settled})
                return lambda: (op(*args).flatten(0, 1),)
            op, args = ops.bound(self.row.verb, arguments | {"settled": settled})
            return lambda: op(*args)

        return [launch(arguments) for arguments in self.arguments]

    def _by_sequence(self, arguments: dict) -> dict:
        """With the call's own vectors as models have them: [sequences, heads, tokens, head_dim]."""
        shape = (len(self.row.lengths), self.row.queries)
        return arguments | {name: arguments[name].unflatten(0, shape).transpose(1, 2) for name in ("query", "keys", "values")}
