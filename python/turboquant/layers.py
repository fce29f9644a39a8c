# SPDX-License-Identifier: Apache-2.0
"""One full-attention layer of a TurboQuantCache: its pages, its fringe, its signs."""

from __future__ import annotations

from typing import NoReturn

import torch
from transformers.cache_utils import CacheLayerMixin

from . import ops
from ._errors import translated
from .calibration import Calibration
from .carrier import Carrier, Step, in_rows, rows_of
from .held import Held
from .metric import Growth, begun
from .options import LastOptions, Options
from .pages import PAGE_TOKENS, PagePool, PageTable
from .prepared import Prepared
from .settings import CacheSettings
from .vectors import balance_from, check_vectors

_again = torch.ops.turboquant.attend_encode_prepared.default
_again = getattr(_again, "_op", _again)  # what the call of an operator calls


class TurboQuantLayer(CacheLayerMixin):
    """Tokens of one (padded) length in pages. `update` returns carriers; whoever attends stores the tokens."""

    is_sliding = False
    is_compileable = False
    is_croppable = True
    stays = True  # pages and fringe stay where they are from step to step

    def __init__(self, settings: CacheSettings, index: int, readers: int = 1) -> None:
        super().__init__()
        self.settings = settings
        self.index = index
        self.readers = readers  # layers that attend to each update: itself, and those that share its KV
        self.pending: Step | None = None  # updated, not yet stored
        self.held: Held | None = None  # all tokens, while they are too few to be coded: then the pages are empty
        self.checked: tuple | None = None  # shapes, dtypes and device of the last update
        self.options: LastOptions | None = None  # attention's
        self.prepared: Prepared | None = None

    # What transformers calls.

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        settings = self.settings
        check_vectors(self.index, key_states, value_states, None)
        batch, kv_heads, _, head_dim = key_states.shape
        device, slots = key_states.device, settings.fringe_first + settings.fringe_recent
        page_bytes = ops.page_bytes(head_dim, settings.k_bits, settings.v_bits)
        self.prepared = None
        fixed_pages = -(-settings.max_tokens // 64) if settings.max_tokens else 0

        self.pages = PageTable(PagePool(kv_heads, page_bytes, device), batch, fixed_pages)
        self.fringe = self.recent_starts = None
        if slots:
            self.fringe = torch.zeros((batch, kv_heads, slots, 2, head_dim), dtype=torch.float16, device=device)
            self.recent_starts = torch.zeros(batch, dtype=torch.int32, device=device)
        self.signs, self.value_signs = settings.signs(self.index, kv_heads, head_dim, device)  # xi
        self.kv_heads, self.head_dim = kv_heads, head_dim
        self.base = settings.base(head_dim, device)
        self._begin_basis()
        self.dtype, self.device = key_states.dtype, device
        self._set_starts((0,) * batch)
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs) -> tuple[Carrier, Carrier]:
        """Stands the new tokens by, behind all earlier ones; see Step."""
        if self.pending is not None:
            self.flush()
        shape, prepared = key_states.shape, self.prepared
        if prepared is None or prepared.own != shape:  # else the operator looks at all of them, as in the step before
            seen = (shape, value_states.shape, key_states.dtype, value_states.dtype, key_states.device)
            if seen != self.checked:
                self._check_update(key_states, value_states)
                self.checked = seen
        if self.settings.max_tokens is not None:
            self._check_fits(shape[2])
        self.pending = step = Step(self, key_states, value_states, shape[2], self.pages.length or self.length)
        return Carrier(step, 0), Carrier(step, 1)

    def get_seq_length(self) -> int:
        return self.length + (self.pending.tokens if self.pending else 0)

    def get_mask_sizes(self, query_length: int | torch.Tensor) -> tuple[int, int]:
        if isinstance(query_length, torch.Tensor):  # transformers before 5.11 passes positions
            query_length = query_length.shape[0]
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return self.settings.max_tokens or -1

    get_max_cache_shape = get_max_length  # its older name

    def crop(self, tokens_to_remove: int) -> None:
        """n <= 0 forgets the newest |n| tokens; n > 0 keeps the first n."""
        self.flush()
        tokens_to_remove = int(tokens_to_remove)  # assisted generation passes a tensor
        length = self.length
        kept = min(tokens_to_remove, length) if tokens_to_remove > 0 else max(length + tokens_to_remove, 0)
        if kept == length:
            return
        if self.held is not None:
            self.held = self.held.first(kept)
        else:
            self.pages.truncate(kept)
            if self.recent_starts is not None:  # the ring holds what it held: the newest W before the crop
                self.recent_starts.clamp_(min=max(length - self.settings.fringe_recent, 0)).clamp_(max=kept)
        self._set_starts(tuple(min(start, kept) for start in self.starts))

    def reset(self) -> None:
        """Forgets all tokens, and the balance and metric of the first ones; the memory stays for the next ones."""
        self.pending = self.held = None
        if not self.is_initialized:
            return
        self.pages.truncate(0)
        if self.recent_starts is not None:
            self.recent_starts.zero_()
        self._begin_basis()
        self._set_starts((0,) * self.batch)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.select(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            self.select([i for i in range(self.batch) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.is_initialized:
            self.select(torch.arange(self.batch)[_on_host(indices)].tolist())

    def offload(self) -> None:
        raise NotImplementedError("this layer stays on its device: build the cache with offloading=True")

    prefetch = offload

    # What attention calls.

    @property
    def length(self) -> int:
        if not self.is_initialized:
            return 0
        return self.pages.length or (self.held.tokens if self.held is not None else 0)

    @property
    def batch(self) -> int:
        return len(self.pages.rows)

    def refuse(self, step: Step) -> NoReturn:
        """`step` is not pending."""
        raise RuntimeError(
            f"layer {self.index}: these keys and values are stored already: they can be attended to {self.readers} "
            "times, between their update and the next"
        )

    def forget(self, step: Step) -> None:
        """After an error: the layer is as before `update`."""
        if self.pending is step:
            self.pending = None
        if self.is_initialized:
            self.pages.truncate(self.pages.length)  # it may have been given pages

    def attend(self, step: Step, query: torch.Tensor, options: Options) -> torch.Tensor:
        """query [batch, q_heads, tokens, head_dim] -> [batch, tokens, q_heads, head_dim]. Stores the step as well, in
        the same call, where this is its last reader and balance and metric are known."""
        batch, heads, tokens, head_dim = query.shape
        settings, pages = self.settings, self.pages
        steady = self.stays and not torch.compiler.is_compiling()
        token_starts = settings.token_starts(batch, tokens, self.device)
        workspace = settings.workspace(head_dim, self.kv_heads, heads, batch, tokens, self.device)
        numbers = (settings.k_bits, settings.v_bits, settings.fringe_first, options.scale, options.softcap, options.window, False)
        last, self.prepared = self.prepared, None
        if step.unread > 1 or not self.basis_known:
            out, _ = ops.attend(
                rows_of(query), rows_of(step.keys), rows_of(step.values), token_starts, pages.pool.data, pages.table,
                self._lengths(), self.starts_tensor, self.fringe, self.recent_starts, self.query_signs, self.value_signs,
                self.base, options.sinks, *numbers, workspace, tokens,
            )  # fmt: skip
            return out.view(batch, tokens, heads, head_dim)
        pages.prepare(tokens)
        own = in_rows(query), in_rows(step.keys), in_rows(step.values)
        arguments = (
            *own, token_starts, pages.pool.data, pages.table, self._lengths(), self.starts_tensor, self.fringe,
            self.recent_starts, self.key_signs, self.query_signs, self.value_signs, self.base, options.sinks, *numbers, workspace,
            self.key_metric,
        )  # fmt: skip
        try:
            out = ops.attend_encode(*arguments)
            if steady and workspace is not None and own[0] is query and own[1] is step.keys and own[2] is step.values:
                self.prepared = Prepared(self, options, query, step.keys.shape).after(last, arguments)
        except BaseException:
            pages.truncate(pages.length)
            raise
        pages.advance(tokens)
        self._stored(step)
        return out

    def attend_again(self, step: Step, query: torch.Tensor, options: Options) -> torch.Tensor | None:
        """`attend` where all but the tokens is as in the last two steps, and None where it is not. A layer and token of
        decoding comes by here, in a model that keeps the host busy, whose caches hold something else by then: each call and
        each object costs."""
        prepared, pages = self.prepared, self.pages
        if prepared is None or prepared.state is None or step.unread != 1 or torch.compiler.is_dynamo_compiling():
            return None
        length, tokens = pages.length, step.tokens
        if prepared.tokens != tokens or prepared.shape != query.shape or prepared.dtype is not query.dtype:
            return None
        if not 0 < length % PAGE_TOKENS <= PAGE_TOKENS - tokens or pages.pool.shared:  # else they lie in the last page
            pages.prepare(tokens)
        if (
            prepared.options is not options
            or prepared.pages is not pages.pool.data
            or prepared.table is not pages.table
            or prepared.starts is not self.starts_tensor
            or prepared.fringe is not self.fringe
            or prepared.recent_starts is not self.recent_starts
            or prepared.query_signs is not self.query_signs
        ):
            return None
        try:
            lengths = self.settings.lengths(prepared.batch, length, self.device)
            out = _again(query, step.keys, step.values, lengths, prepared.state)
        except BaseException as error:
            if isinstance(error, Exception) and any(in_rows(x) is not x for x in (query, step.keys, step.values)):
                return None  # nothing is written then
            self.prepared = None
            if isinstance(error, RuntimeError):
                raise translated(error) from None
            raise
        pages.length = length + tokens
        step.stored = True
        self.pending = None
        return out

    def attended(self, step: Step, query: torch.Tensor) -> None:
        """One reader has its output. The first tokens' queries and keys fix balance and metric; the last reader stores."""
        if step.queries is None and not self.pages.length and (self.growth is not None or not self.basis_known):
            step.queries = query
        step.unread -= 1
        if step.unread <= 0:
            self.store(step)

    def grow(self, step: Step, query: torch.Tensor) -> None:
        """The queries of a call behind tokens in pages, before it: the metric is to be made of them too. After an error of
        the call they stay counted."""
        growth = self.growth
        if step.unread != self.readers or (step.tokens == 1 and growth.passes(len(self.starts))):
            return
        if query.shape[2] == step.tokens:
            starts = self.starts_tensor
            if starts is not None:  # of this call, where padding goes on
                starts = (starts - step.history).clamp_(min=0) if max(self.starts) > step.history else None
            growth.see(query, starts, self.query_signs, self.base)
            if growth.done:
                self.growth = None

    def store(self, step: Step) -> None:
        """Encodes the step's tokens, or holds them."""
        if step.tokens:
            if self.pages.length:
                self._encode(step.keys, step.values, self.key_signs, self.key_metric)
            else:
                self._begin(step)
        self._stored(step)

    def _begin(self, step: Step) -> None:
        """Holds the first tokens while they are few, else encodes all of them as one call."""
        new = step.keys, step.values, step.queries
        held = Held(*new) if self.held is None else self.held.then(*new)
        if held.tokens < self.settings.hold:
            self.held = held if self.held is not None else held.copy()
            return
        settings, key_signs, query_signs, metric = self.settings, self.key_signs, self.query_signs, self.key_metric
        growth = self.growth
        if held.queries is not None:
            if settings.balance and settings.calibration is None and not self.basis_known:
                token_starts = settings.token_starts(self.batch, held.tokens, self.device)
                balance = ops.balance(rows_of(held.queries), rows_of(held.keys), token_starts, self.starts_tensor)
                key_signs, query_signs = self.signs / balance, self.signs * balance
            if settings.metric:
                growth = Growth(held.queries.shape[1], query_signs) if growth is None else growth.copy()
                growth.see(held.queries, self.starts_tensor, query_signs, self.base, make=True)
                metric = growth.metric
        self._encode(held.keys, held.values, key_signs, metric)
        self.key_signs, self.query_signs, self.key_metric = key_signs, query_signs, metric
        grows = settings.metric_grows and held.queries is not None and growth is not None and not growth.done
        self.growth = growth if grows else None
        self.basis_known, self.held = True, None

    def _encode(self, keys: torch.Tensor, values: torch.Tensor, key_signs: torch.Tensor, metric: torch.Tensor | None) -> None:
        """Stores tokens behind those in the pages."""
        self.prepared = None
        settings, pages, tokens = self.settings, self.pages, keys.shape[2]
        pages.prepare(tokens)
        try:
            ops.encode(
                rows_of(keys), rows_of(values), settings.token_starts(self.batch, tokens, self.device), pages.table,
                self._lengths(), self.starts_tensor, pages.pool.data, self.fringe, self.recent_starts,
                key_signs, self.value_signs, self.base, settings.k_bits, settings.v_bits, settings.fringe_first, False, metric,
            )  # fmt: skip
        except BaseException:
            pages.truncate(pages.length)
            raise
        pages.advance(tokens)

    def _stored(self, step: Step) -> None:
        step.stored = True
        self.pending = None

    def _lengths(self) -> torch.Tensor:
        return self.settings.lengths(self.batch, self.pages.length, self.device)

    def dequantize(self, dtype: torch.dtype | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """All stored keys and values [batch, kv_heads, length, head_dim]; padding is zeros."""
        if self.held is not None:
            return self.held.decoded(self.starts_tensor, dtype or self.dtype)
        settings, pages = self.settings, self.pages
        return ops.decode(
            pages.pool.data, pages.table, self._lengths(), self.starts_tensor, self.fringe, self.recent_starts,
            self.query_signs, self.value_signs, self.base, self.head_dim, settings.k_bits, settings.v_bits,
            settings.fringe_first, pages.length, dtype or self.dtype,
        )  # fmt: skip

    def with_history(self, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        """The history dequantised and the step's own tokens exact: what `attend` sees, as tensors."""
        if step.history == 0:
            return step.keys, step.values
        if self.held is not None:
            whole = self.held.then(step.keys, step.values, None)
            return whole.keys, whole.values
        keys, values = self.dequantize(step.keys.dtype)
        return torch.cat([keys, step.keys], dim=2), torch.cat([values, step.values], dim=2)

    def materialise(self, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        """For an attention that is not ours."""
        self.settings.warn_once(
            "attention",
            "The model does not attend with 'turboquant', so each step dequantises the whole history: slow, and "
            "without balance. Call turboquant.enable(model) before the model's first call with this cache.",
        )
        if self.pending is not step:
            self.refuse(step)
        try:
            with torch.no_grad():
                dense = self.with_history(step)
                self.store(step)
        except BaseException:
            self.forget(step)
            raise
        return dense

    def set_starts(self, starts: tuple[int, ...]) -> None:
        if starts != self.starts:
            self._set_starts(starts)

    def flush(self) -> None:
        """Stores tokens that were updated and that nothing attended to."""
        if self.pending is not None:
            with torch.no_grad():
                self.store(self.pending)

    def select(self, sources: list[int]) -> None:
        """Sequence i becomes a copy of what sequence sources[i] was. Pages are shared, not copied."""
        if not self.is_initialized:
            return
        self.flush()
        index = torch.tensor(sources, dtype=torch.int64, device=self.device)
        if self.held is not None:
            self.held = self.held.select(index)
        fringe, recent_starts = self.fringe, self.recent_starts
        if fringe is not None:
            fringe, recent_starts = fringe.index_select(0, index), recent_starts.index_select(0, index)
        self.prepared = None
        self.pages.select(sources, index)
        self.fringe, self.recent_starts = fringe, recent_starts
        self._set_starts(tuple(self.starts[i] for i in sources))
        self.checked = None  # the batch may be another

    def memory(self) -> dict[str, int]:
        """Bytes of every tensor this layer holds, by what they are for."""
        if not self.is_initialized:
            return {}
        parts = {
            "pages": (self.pages.pool.data,),
            "fringe": (self.fringe,),
            "tables": (self.pages.table, self.recent_starts, self.starts_tensor),
            # Its own: those that all layers share are the settings'.
            "signs": ((self.key_signs, self.query_signs) if self.key_signs is not self.signs else ())
            + (self.key_metric, self.growth and self.growth.moment),
            "pending": self.pending.tensors() if self.pending else (),
            "host": (self.prepared.state,) if self.prepared else (),
        }
        held = self.held.nbytes() if self.held is not None else 0
        return {name: sum(t.nbytes for t in tensors if t is not None) for name, tensors in parts.items()} | {"held": held}

    def _begin_basis(self) -> None:
        """Balance 1 and no metric until the first tokens bring their own; a calibration's balance for good, and a metric of its queries."""
        self.key_signs = self.query_signs = self.signs
        self.key_metric: torch.Tensor | None = None
        self.growth: Growth | None = None  # while more queries may change the metric
        settings, calibration = self.settings, self.settings.calibration
        self.basis_known = calibration is not None and not settings.metric
        if calibration is None:
            return
        balance = balance_from(calibration, self.index, self.signs)
        self.key_signs, self.query_signs = self.signs / balance, self.signs * balance
        if settings.metric and (growth := begun(calibration, self.index, self.query_signs, self.base)) is not None:
            self.growth, self.key_metric, self.basis_known = growth, growth.metric, True

    def _set_starts(self, starts: tuple[int, ...]) -> None:
        self.starts = starts
        self.starts_tensor = torch.tensor(starts, dtype=torch.int32, device=self.device) if any(starts) else None

    def _check_update(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Of the first call, or one of another shape than the last."""
        if self.is_initialized and self.length == 0 and keys.shape[0] != self.batch:
            self.is_initialized = False  # empty: another batch may begin
        if self.is_initialized:
            check_vectors(self.index, keys, values, (self.batch, self.kv_heads, self.head_dim, self.device))
        else:
            self.lazy_initialization(keys, values)

    def _check_fits(self, tokens: int) -> None:
        limit = self.settings.max_tokens
        if (needed := self.length + tokens) > limit:
            raise ValueError(
                f"layer {self.index}: {needed} tokens do not fit into max_tokens={limit}: build the cache with more, or "
                "without max_tokens"
            )


def _on_host(indices: torch.Tensor) -> torch.Tensor:
    return indices.cpu() if isinstance(indices, torch.Tensor) else indices
