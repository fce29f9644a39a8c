# SPDX-License-Identifier: Apache-2.0
"""What the layers of one cache share: its options, and small tensors that all layers of a step take."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch

from . import ops
from .calibration import Calibration
from .masks import MaskReader

# Calls of at most so many tokens a sequence (decoding, drafts) share one workspace; larger ones make their own.
KEPT_WORKSPACE_TOKENS = 16


@dataclass
class CacheSettings:
    """What the layers of one cache share."""

    k_bits: int
    v_bits: int
    fringe_first: int
    fringe_recent: int
    balance: bool
    seed: int
    max_tokens: int | None
    calibration: Calibration | None = None  # balance vectors from a file, which then are the balance
    metric: bool = False  # codes of keys are chosen by what queries make of their errors (metric.py)
    hold: int = 0  # the first tokens are coded when there are so many (held.py); 0: at once
    metric_grows: bool = True  # as more queries come; False: those of the first coded call make it
    masks: MaskReader = field(default_factory=MaskReader)
    warned: set[str] = field(default_factory=set)
    _token_starts: dict = field(default_factory=dict)
    _lengths: dict = field(default_factory=dict)
    _last_lengths: tuple = (-1, 0, None, None)
    _workspace_bytes: dict = field(default_factory=dict)
    _workspaces: dict = field(default_factory=dict)

    def token_starts(self, batch: int, tokens: int, device: torch.device) -> torch.Tensor:
        """int32 [batch + 1]: the rows of `batch` sequences of `tokens` each. The last few are kept."""
        key = (batch, tokens, device)
        if (found := self._token_starts.get(key)) is None:
            found = _keep(self._token_starts, key, torch.arange(batch + 1, dtype=torch.int32, device=device) * tokens)
        return found

    def lengths(self, batch: int, length: int, device: torch.device) -> torch.Tensor:
        """int32 [batch]: `length` for each sequence. Never written again, so that all layers of a step take the same."""
        last = self._last_lengths
        if last[0] == length and last[1] == batch and last[2] == device:
            return last[3]
        key = (batch, length, device)
        if (found := self._lengths.get(key)) is None:
            found = _keep(self._lengths, key, torch.full((batch,), length, dtype=torch.int32, device=device))
        self._last_lengths = (length, batch, device, found)
        return found

    def workspace(
        self, head_dim: int, kv_heads: int, q_heads: int, batch: int, tokens: int, device: torch.device
    ) -> torch.Tensor | None:
        """attend's, for calls of `tokens` a sequence; None where the call makes its own."""
        if tokens > KEPT_WORKSPACE_TOKENS:
            return None
        key = (head_dim, kv_heads, q_heads, batch, tokens, device)
        if (needed := self._workspace_bytes.get(key)) is None:
            needed = ops.attend_workspace_bytes(
                head_dim, self.k_bits, self.v_bits, kv_heads, q_heads, batch, batch * tokens, device
            )
            _keep(self._workspace_bytes, key, needed, 16)
        have = self._workspaces.get(device)
        if have is None or have.shape[0] < needed:
            have = self._workspaces[device] = torch.zeros(needed, dtype=torch.uint8, device=device)
        return have

    def cached_tensors(self) -> list[torch.Tensor]:
        return [*self._token_starts.values(), *self._lengths.values()]

    def workspaces(self) -> list[torch.Tensor]:
        return list(self._workspaces.values())

    def warn_once(self, kind: str, message: str) -> None:
        if kind not in self.warned:
            self.warned.add(kind)
            warnings.warn(message, UserWarning, stacklevel=2)


def _keep(kept: dict, key: tuple, value: Any, limit: int = 4) -> Any:
    if len(kept) >= limit:
        kept.clear()
    kept[key] = value
    return value


def sign_seed(seed: int, layer: int, values: bool) -> int:
    """The seed of a layer's random signs: one vector for its keys, one for its values, for all heads."""
    return (seed << 16) + 2 * layer + int(values)
