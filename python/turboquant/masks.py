# SPDX-License-Identifier: Apache-2.0
"""Reads an attention mask: is it "causal, from a first position on, within a window", which `attend` does?"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class MaskView:
    """What a mask says of a call."""

    starts: tuple[int, ...]  # per sequence, its first real position: the left padding
    plain: bool  # the mask is causal + starts + window and nothing else


class MaskReader:
    """Reads each mask once, though every layer of a forward pass brings it."""

    def __init__(self) -> None:
        self._last: tuple | None = None
        self._starts: tuple | None = None

    def read(
        self, mask: torch.Tensor, batch: int, history: int, tokens: int, window: int, starts: tuple[int, ...]
    ) -> MaskView:
        version = None if mask.is_inference() else mask._version
        key = (version, batch, history, tokens, window, starts)
        if self._last is not None and self._last[0]() is mask and self._last[1] == key:
            return self._last[2]
        if self._as_before(mask, batch, history, tokens, window, starts):
            view = MaskView(starts, plain=True)
        else:
            view = read_mask(mask, batch, history, tokens, window, starts)
        self._last = (weakref.ref(mask), key, view)
        return view

    def _as_before(
        self, mask: torch.Tensor, batch: int, history: int, tokens: int, window: int, starts: tuple[int, ...]
    ) -> bool:
        """Whether it is the usual mask with the starts that are known: one look at the device, where read_mask takes several."""
        if mask.dtype != torch.bool or mask.shape != (batch, 1, tokens, history + tokens) or max(starts) >= history:
            return False
        key = (starts, mask.device)
        if self._starts is None or self._starts[0] != key:
            self._starts = (key, torch.tensor(starts, device=mask.device)[:, None, None, None])
        return torch.equal(mask, expected_mask(self._starts[1], history, tokens, window))


def expected_mask(start: torch.Tensor, history: int, tokens: int, window: int) -> torch.Tensor:
    """bool [..., tokens, history + tokens], True: visible. `start` is of the shape [..., 1, 1]."""
    key = torch.arange(history + tokens, device=start.device)
    expected = key >= start
    if tokens > 1 or window > 0:
        query = torch.arange(history, history + tokens, device=start.device)[:, None]
        expected = expected & (key <= query)
        if window > 0:
            expected = expected & (key > query - window)
    return expected


def read_mask(
    mask: torch.Tensor, batch: int, history: int, tokens: int, window: int, starts: tuple[int, ...]
) -> MaskView:
    """`mask`: bool (True: visible) or added, broadcastable to [batch, heads, tokens, history + tokens].
    `starts` are those known so far; a sequence that was all padding until now may start later."""
    total = history + tokens
    if mask.dim() != 4 or mask.shape[0] not in (1, batch) or mask.shape[2] != tokens or mask.shape[3] != total:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}, but this call has batch {batch}, {tokens} query tokens and "
            f"{total} keys ({history} of them cached): pass a mask that covers the cached tokens too"
        )
    visible, biased = _visible(mask)
    visible = visible.expand(batch, -1, -1, -1)
    shown = visible.any(dim=1)  # [batch, tokens, total]
    uniform = not biased and (visible.shape[1] == 1 or bool((visible == visible[:, :1]).all()))

    new = {i for i, start in enumerate(starts) if start >= history}  # no real token so far
    if new:
        columns = shown.any(dim=1)[:, history:]  # [batch, tokens]: seen by any query
        first = torch.where(columns.any(dim=1), columns.int().argmax(dim=1), tokens).tolist()
        starts = tuple(history + first[i] if i in new else start for i, start in enumerate(starts))

    start = torch.tensor(starts, device=mask.device)[:, None, None]
    if bool((shown & (torch.arange(total, device=mask.device) < start)).any()):
        raise ValueError(
            f"attention_mask shows positions that were left padding when they were cached (first real positions: "
            f"{list(starts)}), and padding is not stored: keep the mask of the first call, extended by ones"
        )
    return MaskView(starts, plain=uniform and torch.equal(shown, expected_mask(start, history, tokens, window)))


def _visible(mask: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """The mask as booleans, and whether it also adds a bias."""
    if mask.dtype == torch.bool:
        return mask, False
    if not mask.dtype.is_floating_point:
        raise ValueError(f"attention_mask of dtype {mask.dtype}: make it bool (True: visible) or floating point (added)")
    visible = mask > torch.finfo(mask.dtype).min / 2
    return visible, bool((visible & (mask != 0)).any())
