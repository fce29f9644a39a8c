# SPDX-License-Identifier: Apache-2.0
"""What a query sees, computed the plain way: the oracle of the cache tests.

OracleCache keeps every sequence's pages to itself, one after another (no sharing, no free list). Before each
call it decodes the whole history, appends the call's own keys and values as given, and runs dense attention
in double precision with the mask that transformers made; then it encodes the call. Attention "turboquant_oracle".
"""

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from turboquant import ops
from turboquant.cache import HOLD
from turboquant.settings import sign_seed

NAME = "turboquant_oracle"
PAGES = 8  # a sequence: 512 tokens


def dense(query, key, value, mask, scale, softcap=0.0, sinks=None, window=0, dtype=torch.float64):
    """[batch, heads, tokens, head_dim] each; mask bool or None (causal). Zeros where nothing is seen."""
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        tokens, keys = scores.shape[2:]
        key_position = torch.arange(keys, device=scores.device)
        position = key_position[keys - tokens :, None]
        mask = key_position <= position
        if window:
            mask = mask & (key_position > position - window)
    scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        column = sinks.to(dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], 3)
    weights = torch.softmax(scores, 3).nan_to_num(0.0)[..., : key.shape[2]]
    return weights @ value


class Handle:
    """Stands for the keys or the values of a layer on their way from `update` to the attention."""

    def __init__(self, layer, own):
        self.layer, self.own, self.seen = layer, own, None

    def to(self, device):
        return self


class OracleLayer(CacheLayerMixin):
    is_sliding, is_croppable = False, True

    def __init__(self, index, k_bits, v_bits, fringe, balance, seed, hold=0, metric=False):
        super().__init__()
        self.index, self.bits, self.seed = index, (k_bits, v_bits), seed
        self.first, self.recent = fringe or (0, 0)
        self.balance, self.length, self.with_metric = balance, 0, metric
        self.hold, self.calls = hold, []  # (query, keys, values) that wait until there are `hold` tokens

    def lazy_initialization(self, key_states, value_states):
        batch, heads, _, dim = key_states.shape
        self.heads, self.dim, on = heads, dim, dict(device=key_states.device)
        self.pages = torch.zeros(batch, PAGES, heads, ops.page_bytes(dim, *self.bits), dtype=torch.uint8, **on)
        slots = self.first + self.recent
        self.fringe = torch.zeros(batch, heads, slots, 2, dim, dtype=torch.float16, **on) if slots else None
        self.recent_starts = torch.zeros(batch, dtype=torch.int32, **on) if slots else None
        self.starts = torch.zeros(batch, dtype=torch.int32, **on)
        self.xi = ops.random_signs(dim, sign_seed(self.seed, self.index, False)).to(**on).repeat(heads, 1)
        self.value_signs = ops.random_signs(dim, sign_seed(self.seed, self.index, True)).to(**on).repeat(heads, 1)
        self.s = self.metric = None
        base = ops.hadamard_base(dim)
        self.base = base.to(**on) if base.shape[0] > 1 else None
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return Handle(self, key_states), Handle(self, value_states)

    def _where(self):
        batch, on = self.pages.shape[0], dict(dtype=torch.int32, device=self.pages.device)
        return torch.arange(batch * PAGES, **on).view(batch, PAGES), torch.full((batch,), self.length, **on)

    def history(self, dtype=torch.float32):
        if self.calls:
            real = (torch.arange(self.length, device=self.starts.device) >= self.starts[:, None])[:, None, :, None]
            return tuple(torch.where(real, torch.cat(x, 2), 0).to(dtype) for x in list(zip(*self.calls))[1:])
        table, lengths = self._where()
        s = 1 if self.s is None else self.s
        return ops.decode(
            self.pages.flatten(0, 1), table, lengths, self.starts, self.fringe, self.recent_starts, self.xi * s,
            self.value_signs, self.base, self.dim, *self.bits, self.first, self.length, dtype,
        )  # fmt: skip

    def see_padding(self, mask):
        """Left padding: the columns before the first that any query sees, while nothing else has come."""
        if mask is not None:
            seen = mask.any(1).any(1)
            first = torch.where(seen.any(1), seen.int().argmax(1), seen.shape[1]).int()
            self.starts = torch.where(self.starts >= self.length, first, self.starts)

    def append(self, query, keys, values):
        if self.calls or self.length == 0:
            self.calls.append((query, keys, values))
            self.length += keys.shape[2]
            if self.length < self.hold:
                return
            query, keys, values = (torch.cat(x, 2) for x in zip(*self.calls))
            self.calls, self.length = [], 0
        table, lengths = self._where()
        batch, _, tokens, _ = keys.shape
        queries = query
        query, keys, values = (x.transpose(1, 2).flatten(0, 1).contiguous() for x in (query, keys, values))
        rows = torch.arange(batch + 1, dtype=torch.int32, device=keys.device) * tokens
        if self.s is None:
            self.s = ops.balance(query, keys, rows, self.starts) if self.balance else torch.ones_like(self.xi)
            self.seen, self.steps, self.passed, self.due = [(queries, self.starts)], 0, 0, 0
            sees = True
        else:
            behind = tokens == 1 and sum(len(x) * x.shape[2] for x, _ in self.seen) >= 128
            self.steps += behind
            if sees := not behind or self.steps % 8 == 0:
                self.seen.append((queries, torch.clamp(self.starts - self.length, min=0)))
        self.passed += batch * tokens
        if self.with_metric and sees and (self.passed >= self.due or self.length == 0):  # of all that were seen
            self.due = self.passed + 64
            moment = torch.empty(self.heads, self.dim, self.dim, dtype=torch.int32, device=keys.device)
            self.metric = torch.empty_like(moment, dtype=torch.int8)
            for i, (x, starts) in enumerate(self.seen):
                ops.key_metric(x, starts, self.xi * self.s, self.base, 1, i == 0, moment, self.metric)
        ops.encode(
            keys, values, rows, table, lengths, self.starts, self.pages.view(-1, *self.pages.shape[2:]), self.fringe,
            self.recent_starts, self.xi / self.s, self.value_signs, self.base, *self.bits, self.first, False,
            self.metric,
        )  # fmt: skip
        self.length += tokens

    def get_seq_length(self):
        return self.length

    def get_mask_sizes(self, query_length):
        return self.length + query_length, 0

    def get_max_length(self):
        return -1

    def crop(self, tokens_to_remove):
        n = tokens_to_remove
        kept = min(n, self.length) if n > 0 else max(self.length + n, 0)
        if self.calls and kept < self.length:
            whole = (torch.cat(x, 2)[:, :, :kept] for x in zip(*self.calls))
            self.calls = [tuple(whole)] if kept else []
        elif self.is_initialized and self.recent_starts is not None and kept < self.length:
            held = torch.clamp(self.recent_starts, min=self.length - self.recent)
            self.recent_starts = torch.clamp(held, max=kept)
        self.length = kept

    def _pick(self, index):
        if self.is_initialized:
            for name in ("pages", "fringe", "recent_starts", "starts"):
                if getattr(self, name) is not None:
                    setattr(self, name, getattr(self, name)[index.to(self.pages.device)].clone())
            self.calls = [tuple(x[index.to(x.device)] for x in call) for call in self.calls]

    reorder_cache = batch_select_indices = _pick

    def batch_repeat_interleave(self, repeats):
        self._pick(torch.arange(self.pages.shape[0]).repeat_interleave(repeats))

    def reset(self):
        self.length, self.is_initialized, self.calls = 0, False, []


class OracleCache(Cache):
    def __init__(self, config, k_bits=4, v_bits=4, fringe=(4, 28), balance=True, seed=0, hold=HOLD, metric=True, dtype=torch.float64):
        layers = DynamicCache(config=config.get_text_config(decoder=True)).layers
        layers = [
            OracleLayer(i, k_bits, v_bits, fringe, balance, seed, hold, metric) if type(layer) is DynamicLayer else layer
            for i, layer in enumerate(layers)
        ]
        for layer in layers:
            layer.attention_dtype = dtype
        super().__init__(layers=layers)


def oracle_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    layer = key.layer if isinstance(key, Handle) else None
    dtype = layer.attention_dtype if layer else torch.float64
    if layer:
        handle, own = key, (key.own, value.own)
        if handle.seen is None:  # else a layer that shares these: what it sees is the same
            layer.see_padding(attention_mask)
            old = layer.history() if layer.length else [x[:, :, :0] for x in own]
            handle.seen = [torch.cat(pair, 2) for pair in zip(old, own)]
            layer.append(query, *own)
        key, value = handle.seen
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = dense(
        query, key, value, attention_mask, scale, kwargs.get("softcap") or 0.0, kwargs.get("s_aux"),
        kwargs.get("sliding_window") or 0, dtype,
    )  # fmt: skip
    return out.to(query.dtype).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, oracle_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
