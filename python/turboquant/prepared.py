# SPDX-License-Identifier: Apache-2.0
"""A layer's steps of decoding differ in their tokens and the length; all else the operator takes once (ops.prepare_attend_encode)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from . import ops

if TYPE_CHECKING:
    from .layers import TurboQuantLayer
    from .options import Options


class Prepared:
    """What a step was attended with. Once a second step has brought the same, `state` has it for the operator."""

    __slots__ = ("options", "pages", "table", "starts", "fringe", "recent_starts", "query_signs", "dtype", "shape", "own", "batch", "tokens", "held", "state")

    def __init__(self, layer: TurboQuantLayer, options: Options, query: torch.Tensor, own: torch.Size) -> None:
        self.options = options
        self.pages, self.table = layer.pages.pool.data, layer.pages.table
        self.starts, self.fringe, self.recent_starts = layer.starts_tensor, layer.fringe, layer.recent_starts
        self.query_signs = layer.query_signs  # the other signs change with them
        self.dtype = query.dtype
        self.shape = query.shape
        self.own = own  # the keys' shape
        self.batch, self.tokens = self.shape[0], self.shape[2]
        self.held: tuple = ()  # whose addresses the state has
        self.state: torch.Tensor | None = None

    def after(self, last: Prepared | None, arguments: tuple) -> Prepared:
        """Itself, of use for the next step if `last` was the same; `arguments` are those of attend_encode."""
        if last is not None and last.shape == self.shape and all(getattr(last, n) is getattr(self, n) for n in self.__slots__[:8]):
            # All but the call's own and the lengths, which each step brings.
            self.held, self.state = arguments[3:6] + arguments[7:], ops.prepare_attend_encode(*arguments)
        return self

    def __reduce__(self) -> tuple:
        return type(None), ()  # addresses: a copy of the cache has other ones
