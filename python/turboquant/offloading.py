# SPDX-License-Identifier: Apache-2.0
"""Layers of TurboQuantCache(offloading=True): their pages and fringe lie in host memory while other layers compute.

A layer's `update` sends the layer before it home and calls the one after it back, on a stream of their own, so that
copies run beside the layer's work and two to three layers are on the device at a time. Only pages that were
written since are copied home; page tables, lengths and signs always stay.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from .carrier import Carrier
from .layers import TurboQuantLayer
from .settings import CacheSettings
from .pages import PAGE_TOKENS


@cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Of all caches' copies on a device. In one order, a layer never comes back before it has gone."""
    return torch.cuda.Stream(device)


class OffloadedLayer(TurboQuantLayer):
    stays = False

    def __init__(self, settings: CacheSettings, index: int, readers: int, ring: list[OffloadedLayer]) -> None:
        super().__init__(settings, index, readers)
        self.ring = ring  # all offloaded layers of the cache, in order
        self.place = len(ring)
        ring.append(self)
        self._forget_home()

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._forget_home()

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs) -> tuple[Carrier, Carrier]:
        self._be_here()
        carriers = super().update(key_states, value_states, *args, **kwargs)
        self.ring[self.place - 1].offload()
        self.ring[(self.place + 1) % len(self.ring)].prefetch()
        return carriers

    def offload(self) -> None:
        """Pages and fringe go to the host, unless the last call's tokens still wait to be attended to, or nothing is coded yet."""
        if not self.is_initialized or self.away or self.pending is not None or self.held is not None:
            return
        pages = self.pages.pool.data
        with self._copies():
            if self.home_pages is None or self.home_pages.shape != pages.shape:
                self.home_pages = self._at_home(pages)
            else:
                for first, last in self._dirty_runs():
                    self.home_pages[first:last].copy_(pages[first:last], non_blocking=True)
            if self.fringe is not None and not self._fringe_is_home():
                self.home_fringe = self._at_home(self.fringe, self.home_fringe)
            for tensor in (pages, self.fringe):
                if tensor is not None and tensor.is_cuda:  # its memory may serve again once the copy is done
                    tensor.record_stream(copy_stream(self.device))
        self._stay_home()

    def prefetch(self) -> None:
        """Begins to bring pages and fringe back; `update` waits for them."""
        if not self.is_initialized or not self.away:
            return
        homes = (self.home_pages, self.home_fringe)
        here = [None if home is None else torch.empty_like(home, device=self.device) for home in homes]
        with self._copies():
            for tensor, home in zip(here, homes):
                if tensor is not None:
                    tensor.copy_(home, non_blocking=True)
                    if tensor.is_cuda:
                        tensor.record_stream(copy_stream(self.device))
        self.pages.pool.data, self.fringe = here
        self.away, self.arriving = False, True

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        self.clean = min(self.clean, self.length)

    def reset(self) -> None:
        super().reset()
        self.clean = 0

    def select(self, sources: list[int]) -> None:
        if not self.is_initialized:
            return
        if self.away:  # rows change in the tables; of the tensors, only the fringe has rows
            self._wait()
            if self.home_fringe is not None:
                self.fringe = self.home_fringe.to(self.device)
            super().select(sources)
            if self.pages.pool.data is not self.home_pages:  # it has grown
                self.home_pages = self._at_home(self.pages.pool.data)
            if self.fringe is not None:
                with self._copies():
                    self.home_fringe = self._at_home(self.fringe)
                    if self.fringe.is_cuda:
                        self.fringe.record_stream(copy_stream(self.device))
            self._stay_home()
            return
        self._be_here()
        super().select(sources)
        self.fringe_moved = True

    def dequantize(self, dtype: torch.dtype | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        away = self.is_initialized and self.away
        self._be_here()
        dense = super().dequantize(dtype)
        if away:
            self.offload()
        return dense

    def memory(self) -> dict[str, int]:
        parts = super().memory()
        if self.is_initialized:
            if self.away:
                parts["pages"] = parts["fringe"] = 0
            parts["host"] += sum(t.nbytes for t in (self.home_pages, self.home_fringe) if t is not None)
        return parts

    def __deepcopy__(self, memo: dict) -> OffloadedLayer:
        if self.is_initialized and self.device.type == "cuda":
            self._wait()
            copy_stream(self.device).synchronize()
        other = self.__class__.__new__(self.__class__)
        memo[id(self)] = other
        for name, value in vars(self).items():
            setattr(other, name, copy.deepcopy(value, memo))
        if other.home_pages is not None:  # a copy of pinned memory is not pinned
            other.home_pages = other._at_home(other.home_pages)
            other.home_fringe = None if other.home_fringe is None else other._at_home(other.home_fringe)
            if other.away:
                other._stay_home()
        return other

    def _forget_home(self) -> None:
        self.home_pages: torch.Tensor | None = None
        self.home_fringe: torch.Tensor | None = None
        self.away = self.arriving = False
        self.clean = 0  # tokens whose pages are the same at home
        self.fringe_moved = False  # to other rows, since it was last at home

    def _at_home(self, tensor: torch.Tensor, home: torch.Tensor | None = None) -> torch.Tensor:
        """The tensor in host memory, in `home` where it fits."""
        if home is None or home.shape != tensor.shape:
            home = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self.device.type == "cuda")
        return home.copy_(tensor, non_blocking=True)

    def _stay_home(self) -> None:
        self.pages.pool.data, self.fringe = self.home_pages, self.home_fringe
        self.away, self.clean, self.fringe_moved = True, self.length, False

    def _fringe_is_home(self) -> bool:
        return self.home_fringe is not None and self.clean == self.length and not self.fringe_moved

    def _dirty_runs(self) -> Iterator[tuple[int, int]]:
        """Ranges of page numbers that hold tokens from `clean` on."""
        written = sorted({page for row in self.pages.rows for page in row[self.clean // PAGE_TOKENS :]})
        if self.clean == self.length or not written:
            return
        first = last = written[0]
        for page in written[1:]:
            if page > last + 1:
                yield first, last + 1
                first = page
            last = page
        yield first, last + 1

    def _be_here(self) -> None:
        self.prefetch()
        if self.arriving:
            self._wait()
            self.arriving = False

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).wait_stream(copy_stream(self.device))

    @contextmanager
    def _copies(self) -> Iterator[None]:
        """On the copy stream, behind all work so far."""
        if self.device.type != "cuda":
            yield
            return
        stream = copy_stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            yield
