# SPDX-License-Identifier: Apache-2.0
"""The product's codec: its operators `balance`, `encode` and `decode` on pages of the format, on the text's device."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fidelity.attended import attended_balance
from fidelity.codec import Coded, Layer
from turboquant import ops
from turboquant.metric import Growth
from turboquant.settings import sign_seed

PAGE_TOKENS = 64


@dataclass(frozen=True)
class Recipe:
    """`calls`: tokens of each call that writes the cache, the last one repeated; none: the whole text in one, as a prefill. The first
    `hold` tokens are coded in one call, when there are that many (with `Exact(hold=...)`: until then they are read as they are).
    `balance`: "first call" (the product's default), "first 128 tokens" whatever the calls are, "off", "attended" (attended.py) of the
    first `attended` tokens (0: all), or "calibrated", from `balances` (a layer's index -> [kv_heads, head_dim]). `metric`: of the
    queries so far, as a cache makes it, after `queries` (a layer's index -> [q_heads, tokens, head_dim], of a calibration) where given;
    of the first call's alone where it does not `grow`."""

    k_bits: int
    v_bits: int
    calls: tuple[int, ...] = ()
    balance: str = "first call"
    balances: dict[int, Tensor] | None = None
    queries: dict[int, Tensor] | None = None
    seed: int = 0
    hold: int = 0
    attended: int = 0
    metric: bool = True
    grow: bool = True

    def __call__(self, layer: Layer) -> Coded:
        heads, tokens, dim = layer.keys.shape
        device = layer.keys.device
        query, keys, values = (x.transpose(0, 1).contiguous() for x in (layer.query, layer.keys, layer.values))
        key_signs, value_signs = (
            ops.random_signs(dim, sign_seed(self.seed, layer.index, which)).to(device).repeat(heads, 1) for which in (False, True)
        )
        base = ops.hadamard_base(dim).to(device) if ops.hadamard_base_size(dim) > 1 else None
        calls = call_sizes(tokens, self.calls, self.hold)
        balance = attended_balance(layer, self.attended) if self.balance == "attended" else self._balance(layer.index, query, keys, calls[0])
        key_signs, query_signs = key_signs / balance, key_signs * balance
        metrics = self._metrics(layer, calls, query_signs, base) if self.metric else {0: None}

        count = -(-tokens // PAGE_TOKENS)
        table = torch.arange(count, dtype=torch.int32, device=device)[None]
        pages = torch.zeros(count, heads, ops.page_bytes(dim, self.k_bits, self.v_bits), dtype=torch.uint8, device=device)
        lengths = torch.zeros(1, dtype=torch.int32, device=device)
        calls = joined(calls, metrics)
        starts = {size: torch.tensor([0, size], dtype=torch.int32, device=device) for size, _ in calls}
        done = 0
        metric = None
        for size, _ in calls:
            metric = metrics.get(done, metric)
            ops.encode(
                keys[done : done + size], values[done : done + size], starts[size], table, lengths, None, pages, None, None,
                key_signs, value_signs, base, self.k_bits, self.v_bits, 0, False, metric,
            )  # fmt: skip
            done += size
            lengths += size
        back = ops.decode(
            pages, table, lengths, None, None, None, query_signs, value_signs, base, dim, self.k_bits, self.v_bits, 0, tokens
        )
        return Coded(back[0][0], back[1][0], pages.nbytes)

    def _metrics(self, layer: Layer, calls: Sequence[int], query_signs: Tensor, base: Tensor | None) -> dict[int, Tensor]:
        """Made before the call that begins at a token, by that token."""
        growth, made, done = Growth(len(layer.query), query_signs), {}, 0
        if self.queries is not None:
            growth.see(self.queries[layer.index][None].to(query_signs.device), None, query_signs, base)
        for size in calls:
            due = growth.due
            if not done or (self.grow and not growth.done):
                growth.see(layer.query[None, :, done : done + size], None, query_signs, base, make=not done)
            if growth.due != due:
                made[done] = growth.metric.clone()
            done += size
        return made

    def _balance(self, layer: int, query: Tensor, keys: Tensor, first_call: int) -> Tensor:
        if self.balance == "off":
            return torch.ones_like(keys[0])
        if self.balance == "calibrated":
            return self.balances[layer].to(keys.device)
        seen = first_call if self.balance == "first call" else min(128, len(keys))
        starts = torch.tensor([0, seen], dtype=torch.int32, device=keys.device)
        return ops.balance(query[:seen], keys[:seen], starts)


def call_sizes(tokens: int, calls: Sequence[int], hold: int = 0) -> list[int]:
    """Sizes that sum to `tokens`: those of `calls`, then its last one again and again; calls up to the one that makes `hold` are one."""
    sizes, left, at = [], tokens, 0
    while left:
        size = min(left, calls[min(at, len(calls) - 1)] if calls else left)
        sizes.append(size)
        left, at = left - size, at + 1
    while len(sizes) > 1 and sizes[0] < hold:
        sizes[:2] = [sizes[0] + sizes[1]]
    return sizes


def joined(calls: Sequence[int], apart: Container[int] = ()) -> list[tuple[int, bool]]:
    """(size, are these steps of one token?) of calls that leave the same bytes as `calls`: a page's centre is made by the call that opens
    it, so single tokens behind that one may come at once. A group begins at each token of `apart`."""
    groups: list[tuple[int, bool]] = []
    done = 0
    for size in calls:
        last, steps = groups[-1] if groups else (0, False)
        if size == 1 and steps and done not in apart and done % PAGE_TOKENS > 1 and last < PAGE_TOKENS and (done - last) % PAGE_TOKENS > 0:
            groups[-1] = (last + 1, True)
        else:
            groups.append((size, size == 1))
        done += size
    return groups
