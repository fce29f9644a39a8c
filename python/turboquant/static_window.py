# SPDX-License-Identifier: Apache-2.0
"""A layer of a TurboQuantStaticCache whose attention slides: the newest tokens in 16 bits, in a ring.

transformers' own counts on the host, so that each step of a compiled function would record a CUDA graph of its own, and moves the
whole window a step. Here the count lies on the device, a step writes one slot, and the mask says which position a slot has.
"""

from __future__ import annotations

import torch
from transformers.cache_utils import CacheLayerMixin

from .static_state import allocates, fixed


class StaticWindowLayer(CacheLayerMixin):
    """Position p lies in slot p % slots."""

    is_sliding = True
    is_compileable = True

    def __init__(self, window: int, max_tokens: int) -> None:
        super().__init__()
        self.slots = min(window, max_tokens)
        self.empty = True

    @allocates
    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            fixed(torch.zeros((*x.shape[:2], self.slots, x.shape[3]), dtype=x.dtype, device=x.device))
            for x in (key_states, value_states)
        )
        self.count = fixed(torch.zeros((), dtype=torch.int64, device=self.device))
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values that window_mask is a mask of: in a first call its own, in a step the ring, else both."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        tokens = key_states.shape[2]
        seen = (key_states, value_states)
        if not self.empty and tokens > 1:
            seen = tuple(torch.cat(pair, dim=2) for pair in ((self.keys, key_states), (self.values, value_states)))
        kept = min(tokens, self.slots)
        slot = torch.remainder(self.count + torch.arange(tokens - kept, tokens, device=self.device), self.slots)
        self.keys.index_copy_(2, slot, key_states[:, :, tokens - kept :])
        self.values.index_copy_(2, slot, value_states[:, :, tokens - kept :])
        self.count.add_(tokens)
        if not self.empty and tokens == 1:
            seen = (self.keys, self.values)
        self.empty = False
        return seen

    def get_seq_length(self) -> int | torch.Tensor:
        return 0 if self.empty else self.count

    def get_mask_sizes(self, query_length: int) -> tuple[int, int | torch.Tensor]:
        """For turboquant_mask: the count as int64 [1, 1], which no layer of transformers returns."""
        if self.empty:
            return query_length, 0
        return self.slots + (query_length if query_length > 1 else 0), self.count.view(1, 1)

    def get_max_length(self) -> int:
        return self.slots

    def reset(self) -> None:
        self.empty = True
        if self.is_initialized:
            self.count.zero_()


def window_mask(
    batch: int, tokens: int, keys: int, count: torch.Tensor, window: int, mask: torch.Tensor | None
) -> torch.Tensor:
    """bool [batch, 1, tokens, keys] for what `update` returns after `count` tokens; `mask` bool [batch, positions] or None."""
    device = count.device
    own = count + torch.arange(tokens, device=device)
    newest, slots = (count, keys) if tokens == 1 else (count - 1, keys - tokens)
    position = newest - torch.remainder(newest - torch.arange(slots, device=device), slots)  # below 0: nothing yet
    if tokens > 1:
        position = torch.cat([position, own])
    query = own[:, None]
    visible = (position >= 0) & (position <= query) & (position > query - window)
    if mask is None:
        return visible.expand(batch, 1, tokens, keys)
    return visible & mask[:, position.clamp(0, mask.shape[1] - 1)][:, None, None]
