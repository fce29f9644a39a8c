# SPDX-License-Identifier: Apache-2.0
"""One full-attention layer of a TurboQuantStaticCache: pages at a fixed place, for a fixed number of tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from transformers.cache_utils import CacheLayerMixin

from . import ops
from .carrier import in_rows, rows_of
from .metric import Growth, begun
from .settings import CacheSettings, sign_seed
from .static_mask import read_first_mask, read_later_mask
from .static_state import StaticState, allocates, fixed
from .vectors import balance_from, check_vectors


class StaticStep:
    """One update of one layer: the call's own keys and values [batch, kv_heads, tokens, head_dim]."""

    def __init__(
        self, layer: TurboQuantStaticLayer, index: int, state: StaticState, keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        self.layer = layer
        self.index = index
        self.state = state
        self.keys = keys
        self.values = values
        self.tokens = keys.shape[2]
        self.readers = state.readers_of(index)
        self.unread = self.readers


class StaticHalf:
    """What `update` returns: the keys' half of a step, or the values'. As plain as can be, since torch.compile traces it."""

    def __init__(self, step: StaticStep) -> None:
        self.step = step

    def to(self, *_: Any, **__: Any) -> StaticHalf:  # models move shared KV to the reader's device
        return self

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotImplementedError(
            "a TurboQuantStaticCache is read by the attention 'turboquant' alone: call turboquant.enable(model)"
        )

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> NoReturn:
        raise NotImplementedError(
            "a TurboQuantStaticCache is read by the attention 'turboquant' alone: call turboquant.enable(model)"
        )


class TurboQuantStaticLayer(CacheLayerMixin):
    """A decoding step reads few attributes of a layer, its tensors, and takes what layers share from `state`, which comes with the
    step: before each call, torch.compile looks at whatever the traced code has read, for each layer again, and at an object
    that is found in several places by a function of Python.
    """

    is_sliding = False
    is_compileable = True
    is_croppable = True

    def __init__(self, settings: CacheSettings, state: StaticState, index: int, q_heads: int) -> None:
        super().__init__()
        self.settings = settings
        self.state = state
        self.index = index
        self.q_heads = q_heads

    @property
    def batch(self) -> int:
        return self.state.batch

    @property
    def key_signs(self) -> torch.Tensor:
        return self.all_signs[0]

    @allocates
    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        settings, state = self.settings, self.state
        batch, kv_heads, _, head_dim = key_states.shape
        device, slots = key_states.device, settings.fringe_first + settings.fringe_recent
        if state.batch == 0:
            state.allocate(batch, device)
        self.page_bytes = ops.page_bytes(head_dim, settings.k_bits, settings.v_bits)
        self.kv_heads, self.head_dim = kv_heads, head_dim
        self.dtype, self.device = key_states.dtype, device
        self._allocate()
        key_signs, value_signs = (
            ops.random_signs(head_dim, sign_seed(settings.seed, self.index, values)).to(device, non_blocking=True).repeat(kv_heads, 1)
            for values in (False, True)
        )
        self.signs = key_signs  # xi
        # [3, kv_heads, head_dim], one input of a compiled step: what keys, queries and values are multiplied by.
        self.all_signs = fixed(torch.stack([key_signs, key_signs, value_signs]))
        self.key_metric = None
        if settings.metric:
            self.key_metric = fixed(torch.zeros((kv_heads, head_dim, head_dim), dtype=torch.int8, device=device))
        self.begun: Growth | None = None  # the metric of a calibration's queries
        self.begin_basis()
        base = ops.hadamard_base(head_dim)
        self.base = None if base.shape[0] == 1 else fixed(base.to(device, non_blocking=True))
        if settings.metric and (growth := begun(settings.calibration, self.index, self.all_signs[1], self.base)) is not None:
            self.begun = growth
            fixed(growth.moment)
            self.key_metric.copy_(fixed(growth.metric))
        self.is_initialized = True

    def _allocate(self) -> None:
        settings, state = self.settings, self.state
        heads, head_dim, device = self.kv_heads, self.head_dim, self.device
        slots = settings.fringe_first + settings.fringe_recent
        self.pages = fixed(
            torch.zeros((state.batch * state.pages + 1, heads, self.page_bytes), dtype=torch.uint8, device=device)
        )
        self.fringe = None
        if slots:
            self.fringe = fixed(torch.zeros((state.batch, heads, slots, 2, head_dim), dtype=torch.float16, device=device))
        state.reserve_workspace(
            ops.attend_workspace_bytes(
                head_dim, settings.k_bits, settings.v_bits, heads, self.q_heads, state.batch, state.batch, device
            )
        )

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs) -> tuple[StaticHalf, StaticHalf]:
        """Stores nothing: whoever attends does."""
        return self.begin_step(self.index, self.state, key_states, value_states)

    def begin_step(
        self, index: int, state: StaticState, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[StaticHalf, StaticHalf]:
        if state.empty and not self.is_initialized:
            check_vectors(index, keys, values, None)
            self.lazy_initialization(keys, values)
        have = (state.row_of.shape[0] - 1, *self.all_signs.shape[1:], self.pages.device)
        check_vectors(index, keys, values, have, "use a new cache")
        if index == state.first:
            state.begin(keys.shape[2])
        step = StaticStep(self, index, state, keys, values)
        return StaticHalf(step), StaticHalf(step)

    def get_seq_length(self) -> int | torch.Tensor:
        return 0 if self.state.empty else self.state.lengths[0]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int | torch.Tensor]:
        """For turboquant_mask: the capacity, and the length as int32 [1], which no layer of transformers returns."""
        return (query_length, 0) if self.state.empty else (self.state.max_tokens, self.state.lengths[:1])

    def get_max_length(self) -> int:
        return self.state.max_tokens

    def offload(self) -> None:
        raise NotImplementedError("TurboQuantStaticCache does not offload: its addresses are fixed")

    prefetch = offload

    # What attention calls.

    def attention(
        self, step: StaticStep, query: torch.Tensor, mask: torch.Tensor | None, options: Any, exact: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """query [batch, q_heads, tokens, head_dim] -> [batch, tokens, q_heads, head_dim]; the last reader stores.
        `exact`: the call's own keys and values attended as they are."""
        state, tokens = step.state, step.tokens
        if query.shape[2] != tokens:
            raise ValueError(f"{query.shape[2]} queries came with {tokens} keys of their own: their numbers must be equal")
        first_reader, last_reader = step.unread == step.readers, step.unread == 1
        step.unread -= 1
        if state.empty:
            if step.index == state.first and first_reader:
                read_first_mask(state, mask, tokens)
            out = exact()
            if tokens and (self.settings.balance or self.settings.metric) and not self.basis_known and first_reader:
                self.take_balance(step, query)
            if last_reader:
                self.encode(step)
                self.basis_known = self.basis_known or tokens > 0
        else:
            if step.index == state.first and first_reader:
                read_later_mask(state, mask, tokens)
            out = self.attend(step, query, options, last_reader)
        if last_reader and step.index == state.last:
            state.advance(tokens)
        return out

    def attend(self, step: StaticStep, query: torch.Tensor, options: Any, encode: bool) -> torch.Tensor:
        batch, heads, tokens, head_dim = query.shape
        state = step.state
        sequences = (self.pages, state.table, state.position(tokens), state.starts, self.fringe, state.recent_starts)
        numbers = (*state.widths, options.scale, options.softcap, options.window)
        own = (query, step.keys, step.values)
        rest = (state.token_starts(tokens), *sequences)
        key_signs, query_signs, value_signs = self.all_signs.unbind()
        basis = (query_signs, value_signs, self.base, options.sinks)
        workspace = state.workspace if tokens == 1 else None
        # Settled: all but the call's own is of the step before, and a model has kernels in between. Sinks may be converted just now.
        settled = tokens == 1 and options.sinks is None and state.unseen()
        if encode:
            return ops.attend_encode(*(in_rows(x) for x in own), *rest, key_signs, *basis, *numbers, settled, workspace, self.key_metric)
        out, _ = ops.attend(*(rows_of(x) for x in own), *rest, *basis, *numbers, settled, workspace, tokens)
        return out.view(batch, tokens, heads, head_dim)

    def encode(self, step: StaticStep) -> None:
        state = step.state
        ops.encode(
            rows_of(step.keys), rows_of(step.values), state.token_starts(step.tokens), state.table, state.position(step.tokens),
            state.starts, self.pages, self.fringe, state.recent_starts, self.key_signs, self.all_signs[2], self.base,
            *state.widths, False, self.key_metric,
        )  # fmt: skip

    def take_balance(self, step: StaticStep, query: torch.Tensor) -> None:
        state = step.state
        if self.settings.balance and self.settings.calibration is None:
            balance = ops.balance(rows_of(query), rows_of(step.keys), state.token_starts(step.tokens), state.starts)
            self._set_balance(balance)
        if self.key_metric is not None:
            query_signs = self.all_signs[1]
            growth = Growth(query.shape[1], query_signs) if self.begun is None else self.begun.copy()
            growth.see(query, state.starts, query_signs, self.base, make=True)
            self.key_metric.copy_(growth.metric)

    def begin_basis(self) -> None:
        """Balance 1 and a metric of 0 until the first call brings its own; a calibration's balance for good, and a metric of its queries."""
        calibration = self.settings.calibration
        self.basis_known = calibration is not None and not self.settings.metric
        if self.begun is not None:
            self.key_metric.copy_(self.begun.metric)
        elif self.key_metric is not None:
            self.key_metric.zero_()
        self._set_balance(balance_from(calibration, self.index, self.signs) if calibration else torch.ones_like(self.signs))

    def _set_balance(self, balance: torch.Tensor) -> None:
        self.key_signs.copy_(self.signs / balance)
        self.all_signs[1].copy_(self.signs * balance)

    # What the cache calls.

    def reset(self) -> None:
        if self.is_initialized:
            self.begin_basis()

    def select(self, sources: list[int], batch: int, length: int) -> None:
        """Sequence i becomes a copy of what sequence sources[i] of `batch` was; the state has its new size already."""
        pages, fringe, per_sequence = self.pages, self.fringe, self.state.pages
        used = -(-length // 64)
        moved = [i for i, source in enumerate(sources) if i != source]
        if len(sources) != batch:
            self._allocate()
            moved = list(range(len(sources)))
        if not moved:
            return
        to, of = (torch.tensor(rows, device=self.device) for rows in (moved, [sources[i] for i in moved]))
        if fringe is not None:
            self.fringe[to] = fringe[of]
        old, new = (x[:-1].view(-1, per_sequence, *x.shape[1:])[:, :used] for x in (pages, self.pages))
        new[to] = old[of]

    def memory(self) -> dict[str, int]:
        if not self.is_initialized:
            return {}
        parts = {
            "pages": (self.pages,),
            "fringe": (self.fringe,),
            "signs": (self.signs, self.all_signs, self.base, self.key_metric)
            + ((self.begun.moment, self.begun.metric) if self.begun is not None else ()),
        }
        return {name: sum(t.nbytes for t in tensors if t is not None) for name, tensors in parts.items()}
