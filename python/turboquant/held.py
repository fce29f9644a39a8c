# SPDX-License-Identifier: Apache-2.0
"""A layer's first tokens as the model gave them, until there are enough to be coded as one call (docs/adr/0007)."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Held:
    """[batch, heads, tokens, head_dim] each. `queries`: None where nothing wants a balance of them, or not all were seen."""

    keys: torch.Tensor
    values: torch.Tensor
    queries: torch.Tensor | None

    @property
    def tokens(self) -> int:
        return self.keys.shape[2]

    def then(self, keys: torch.Tensor, values: torch.Tensor, queries: torch.Tensor | None) -> Held:
        """With a call's tokens behind them."""
        queries = None if self.queries is None or queries is None else torch.cat([self.queries, queries], dim=2)
        return Held(torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2), queries)

    def copy(self) -> Held:
        """Without the rest of a storage that a model's projections may share."""
        return Held(*(None if x is None else x.clone(memory_format=torch.contiguous_format) for x in self._fields()))

    def first(self, tokens: int) -> Held | None:
        return Held(*(None if x is None else x[:, :, :tokens] for x in self._fields())) if tokens else None

    def select(self, index: torch.Tensor) -> Held:
        return Held(*(None if x is None else x.index_select(0, index) for x in self._fields()))

    def decoded(self, starts: torch.Tensor | None, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """As `ops.decode` gives stored tokens: padding is zeros."""
        if starts is None:
            return self.keys.to(dtype), self.values.to(dtype)
        padding = (torch.arange(self.tokens, device=starts.device) < starts[:, None])[:, None, :, None]
        return self.keys.masked_fill(padding, 0).to(dtype), self.values.masked_fill(padding, 0).to(dtype)

    def nbytes(self) -> int:
        return sum(x.nbytes for x in self._fields() if x is not None)

    def _fields(self) -> tuple[torch.Tensor | None, ...]:
        return self.keys, self.values, self.queries
