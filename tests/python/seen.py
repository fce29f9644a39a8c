# SPDX-License-Identifier: Apache-2.0
"""What every query of a finished generation saw, attended to the plain way and all at once.

A second model, fed the whole text in one call, attends with "turboquant_seen": a query of the call that began at
position c saw that call's keys and values as the model gives them (calls that were held together are one here), the S
first and the W newest tokens before c through the fringe's 16 bits, and all others through the codes that the
generation left in its pages. One softmax over three columns a token, of which the mask shows one. So the codes are
the same, and what differs is arithmetic.
"""

from contextlib import contextmanager

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from turboquant import ops
from turboquant.layers import TurboQuantLayer

NAME = "turboquant_seen"


@contextmanager
def recorded():
    """Keys and values of every update of every layer of one cache: {layer: [(keys, values), ...]}. Its metric does not grow: all calls
    are coded with the one that is left at the end."""
    calls, update, grow = {}, TurboQuantLayer.update, TurboQuantLayer.grow

    def record(layer, keys, values, *args, **kwargs):
        calls.setdefault(layer.index, []).append((keys, values))
        return update(layer, keys, values, *args, **kwargs)

    TurboQuantLayer.update, TurboQuantLayer.grow = record, lambda *_: None
    try:
        yield calls
    finally:
        TurboQuantLayer.update, TurboQuantLayer.grow = update, grow


class Seen(CacheLayerMixin):
    """A layer of the reference's cache, and what its `update` returns for both the keys and the values."""

    is_sliding = False

    def __init__(self, layer, calls):
        super().__init__()
        settings = layer.settings
        keys, values = (torch.cat(x, 2) for x in zip(*calls))
        calls = list(calls)
        while len(calls) > 1 and calls[0][0].shape[2] < settings.hold:  # they saw each other as they are, and are coded as one
            calls[:2] = [tuple(torch.cat(x, 2) for x in zip(*calls[:2]))]
        batch, heads, tokens, head_dim = keys.shape
        device = keys.device
        lengths = torch.full((batch,), tokens, dtype=torch.int32, device=device)
        bits = settings.k_bits, settings.v_bits

        starts = layer.starts_tensor  # of left padding

        def decode(pages, table, fringe=None):
            return ops.decode(
                pages, table, lengths, starts, fringe, None if fringe is None else torch.zeros_like(lengths),
                layer.query_signs, layer.value_signs, layer.base, head_dim, *bits, 0 if fringe is None else tokens, tokens,
            )  # fmt: skip

        def encode(keys, values, begin, fringe=None):
            rows = [x.transpose(1, 2).reshape(-1, heads, head_dim) for x in (keys, values)]
            token_starts = torch.arange(batch + 1, dtype=torch.int32, device=device) * keys.shape[2]
            ops.encode(
                *rows, token_starts, table, torch.full_like(lengths, begin), starts, pages, fringe,
                None if fringe is None else torch.zeros_like(lengths), layer.key_signs, layer.value_signs, layer.base, *bits,
                0 if fringe is None else tokens, False, layer.key_metric,
            )  # fmt: skip

        count = -(-tokens // 64)
        pages = torch.zeros(batch * count, *layer.pages.pool.data.shape[1:], dtype=torch.uint8, device=device)
        table = torch.arange(batch * count, dtype=torch.int32, device=device).view(batch, count)
        begin = 0
        for own in calls:
            encode(*own, begin)
            begin += own[0].shape[2]
        self.coded = decode(pages, table)
        for ours, expected in zip(decode(layer.pages.pool.data, layer.pages.table), self.coded):
            assert torch.equal(ours, expected), f"layer {layer.index} has other codes than its calls, one after another, leave"
        fringe = torch.zeros(batch, heads, tokens, 2, head_dim, dtype=torch.float16, device=device)
        encode(keys, values, 0, fringe)  # as if the fringe held every token
        self.kept = decode(pages, table, fringe)

        begins = torch.tensor([sum(k.shape[2] for k, _ in calls[:i]) for i in range(len(calls))], device=device)
        counts = torch.tensor([k.shape[2] for k, _ in calls], device=device)
        begin = begins.repeat_interleave(counts)[:, None]  # of each position's call
        token = torch.arange(tokens, device=device)
        own = token >= begin
        first = token < torch.tensor(layer.starts, device=device)[:, None, None, None] + settings.fringe_first
        fringe = ~own & (first | (token >= begin - settings.fringe_recent))
        self.column = torch.cat([own.expand_as(fringe), fringe, ~own & ~fringe], dim=3)  # of each token's three, the one that is shown

    def lazy_initialization(self, key_states, value_states):
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        self.own = key_states, value_states
        return self, self

    def to(self, device):
        return self

    def keys_and_values(self):
        return (torch.cat([x, *(y.to(x.dtype) for y in old)], 2) for x, *old in zip(self.own, self.kept, self.coded))

    def get_seq_length(self):
        return 0

    def get_mask_sizes(self, query_length):
        return query_length, 0

    def get_max_length(self):
        return -1


def seen_cache(cache, calls, config):
    """The reference's cache, of `cache` after a generation that `recorded` gave the `calls` of."""
    layers = DynamicCache(config=config).layers
    return Cache(
        layers=[Seen(old, calls[i]) if isinstance(old, TurboQuantLayer) else new for i, (old, new) in enumerate(zip(cache.layers, layers))]
    )


def seen_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    tokens, window, mask = query.shape[2], kwargs.get("sliding_window") or 0, attention_mask
    if mask is None:
        token = torch.arange(tokens, device=query.device)
        mask = token <= token[:, None]
        if window:
            mask = mask & (token > token[:, None] - window)
    if isinstance(key, Seen):
        mask = mask.repeat(*[1] * (mask.dim() - 1), 3) & key.column
        key, value = key.keys_and_values()
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    return plain(query, key, value, mask, scale, kwargs.get("softcap"), kwargs.get("s_aux")).transpose(1, 2), None


def plain(query, key, value, mask, scale, softcap, sinks):
    """torch's SDPA, or where it does not know what is asked, what the models' own eager attention does."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if not softcap and sinks is None:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=scale)
    scores = query @ key.transpose(2, 3) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], 3)
    high = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax(scores, 3, dtype=high).to(query.dtype)[..., : key.shape[2]] @ value


AttentionInterface.register(NAME, seen_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
