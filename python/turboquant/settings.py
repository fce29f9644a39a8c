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
LAYERS = 32  # whose signs are one tensor


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
    layers: int = 0  # of the cache; 0: not known
    masks: MaskReader = field(default_factory=MaskReader)
    warned: set[str] = field(default_factory=set)
    _signs: dict = field(default_factory=dict)
    _bases: dict = field(default_factory=dict)
    _token_starts: dict = field(default_factory=dict)
    _lengths: dict = field(default_factory=dict)
    _last_lengths: tuple = (-1, 0, None, None)
    _workspace_bytes: dict = field(default_factory=dict)
    _workspaces: dict = field(default_factory=dict)

    def signs(self, layer: int, kv_heads: int, head_dim: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """fp32 [kv_heads, head_dim] of a layer's keys and of its values; never written, and kept as long as the cache. Those of
        LAYERS layers come to the device at once, where the cache has so many: at a layer's first call the GPU waits for its host."""
        most = LAYERS if layer < self.layers else 1
        first = layer // most * most
        key = (first, kv_heads, head_dim, device)
        if (found := self._signs.get(key)) is None:
            host = _host_signs(self.seed, first, max(min(most, self.layers - first), 1), head_dim)
            found = self._signs[key] = host[:, :, None].to(device, non_blocking=True).repeat(1, 1, kv_heads, 1)
        return found[layer - first].unbind(0)

    def base(self, head_dim: int, device: torch.device) -> torch.Tensor | None:
        """The rotation's base matrix (ops.hadamard_base); None where it is 1."""
        key = (head_dim, device)
        if key not in self._bases:
            base = ops.hadamard_base(head_dim)
            self._bases[key] = None if base.shape[0] == 1 else base.to(device, non_blocking=True)
        return self._bases[key]

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

    def basis_tensors(self) -> list[torch.Tensor]:
        """What signs() and base() gave out parts of."""
        return [*self._signs.values(), *(base for base in self._bases.values() if base is not None)]

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


_HOST_SIGNS: dict[tuple, torch.Tensor] = {}  # the last few, for caches that come one after another


def _host_signs(seed: int, first: int, count: int, head_dim: int) -> torch.Tensor:
    """fp32 [count, 2 (keys, values), head_dim] of the layers from `first` on."""
    key = (seed, first, count, head_dim)
    if (found := _HOST_SIGNS.get(key)) is None:
        seeds = [sign_seed(seed, layer, values) for layer in range(first, first + count) for values in (False, True)]
        found = torch.stack([ops.random_signs(head_dim, x) for x in seeds]).unflatten(0, (count, 2))
        if type(found) is torch.Tensor:  # a tracer's tensors are its own
            _keep(_HOST_SIGNS, key, found, 8)
    return found


def sign_seed(seed: int, layer: int, values: bool) -> int:
    """The seed of a layer's random signs: one vector for its keys, one for its values, for all heads."""
    return (seed << 16) + 2 * layer + int(values)
