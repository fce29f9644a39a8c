# SPDX-License-Identifier: Apache-2.0
"""One TurboQuantLayer and its oracle, fed the same vectors without a model between."""

import math
from types import SimpleNamespace

import torch
import where
from dense_oracle import OracleLayer, oracle_attention
from turboquant.cache import HOLD
from turboquant.attention import turboquant_attention
from turboquant.layers import TurboQuantLayer
from turboquant.settings import CacheSettings
from turboquant.offloading import OffloadedLayer

SETTINGS = dict(k_bits=4, v_bits=4, fringe=(4, 28), balance=True, seed=0, hold=HOLD, metric=True)


class LayerPair:
    offloaded = False  # leave for the host after each call
    shape = (32, torch.float32)  # head_dim and dtype, unless told otherwise

    def __init__(self, heads=(4, 2), head_dim=None, batch=1, dtype=None, readers=1, **settings):
        self.q_heads, self.kv_heads = heads
        self.head_dim, self.dtype = head_dim or self.shape[0], dtype or self.shape[1]
        s = SETTINGS | settings
        first, recent = s["fringe"] or (0, 0)
        max_tokens = s.pop("max_tokens", None)
        shared = CacheSettings(s["k_bits"], s["v_bits"], first, recent, s["balance"], s["seed"], max_tokens, metric=s["metric"], hold=s["hold"])
        self.layer = OffloadedLayer(shared, 0, readers, []) if self.offloaded else TurboQuantLayer(shared, 0, readers)
        self.oracle = OracleLayer(0, **s)
        self.oracle.attention_dtype = torch.float64
        self.module = SimpleNamespace(training=False, is_causal=True, num_key_value_groups=self.q_heads // self.kv_heads)
        self.generator = torch.Generator().manual_seed(0)
        self.batch = batch

    def vectors(self, tokens):
        """Query, keys, values [batch, heads, tokens, head_dim]; keys with a common part, as models have."""
        shapes = [(self.batch, h, tokens, self.head_dim) for h in (self.q_heads, self.kv_heads, self.kv_heads)]
        query, keys, values = (torch.randn(shape, generator=self.generator) for shape in shapes)
        keys = keys + 2 * torch.linspace(-1, 1, self.head_dim)
        return tuple(x.to(where.DEVICE, self.dtype) for x in (query, keys, values))

    def mask(self, tokens, starts, window=0):
        """What transformers makes of left padding: bool [batch, 1, tokens, history + tokens]."""
        history = self.oracle.length
        query, key = torch.arange(history, history + tokens)[:, None], torch.arange(history + tokens)
        mask = (key <= query) & (key >= torch.tensor(starts)[:, None, None])
        if window:
            mask = mask & (key > query - window)
        return mask[:, None].to(where.DEVICE)

    def call(self, tokens, mask=None, **kwargs):
        """Outputs [batch, tokens, heads, head_dim] of ours and of the oracle, and what rounding may cost."""
        query, keys, values = self.vectors(tokens)
        bound = self.bound(query, keys, values, kwargs.get("scaling"))
        ours, _ = turboquant_attention(self.module, query, *self.layer.update(keys, values), mask, **kwargs)
        if self.offloaded:
            self.layer.offload()
        exact, _ = oracle_attention(self.module, query.float(), *self.oracle.update(keys, values), mask, **kwargs)
        return ours, exact, bound

    def check(self, tokens, mask=None, seen=None, **kwargs):
        """`seen` [batch, tokens]: rows to compare (others are padding)."""
        ours, exact, bound = self.call(tokens, mask, **kwargs)
        error = (ours.float() - exact).abs()
        if seen is not None:
            error = error[seen.to(error.device)]
        assert error.max() <= bound, f"error {error.max():.3g}, rounding explains {bound:.3g}"

    def bound(self, query, keys, values, scale=None):
        """Of fp32 attention in the rotated domain, to first order. A dot product of d terms and two rotations of
        2 log2 d steps err by d + 4 log2 d + 8 roundings of |q| |k|; that much twice moves each weight of the
        softmax (itself and the sum), summing n weights costs n more; the vectors are at most those now stored."""
        old_keys, old_values = self.oracle.history() if self.oracle.is_initialized else (keys[:, :, :0], values[:, :, :0])
        longest = lambda x: x.float().nan_to_num(0.0).norm(dim=-1).amax().item() if x.numel() else 0.0  # noqa: E731
        d, n, unit = self.head_dim, self.oracle.length + keys.shape[2], 2.0**-24
        scale = d**-0.5 if scale is None else scale
        score = (d + 4 * math.log2(d) + 8) * unit * scale * longest(query) * max(longest(keys), longest(old_keys))
        value = max(longest(values), longest(old_values))
        bound = (2 * score + (2 * n + 4 * math.log2(d) + 8) * unit) * value
        if self.dtype != torch.float32:  # the result is rounded once, and torch's own SDPA rounds the weights too
            bound += 3 * torch.finfo(self.dtype).eps * value
            if where.DEVICE == "cuda":  # queries and weights in 16 bits: tests/gpu/attend_bound.h
                half, integer, reach = 2.0**-11, 1 / 65278, scale * longest(query) * max(longest(keys), longest(old_keys))
                norms = torch.cat([x.float().norm(dim=-1).flatten() for x in (values, old_values)])
                shortest = norms[norms > 0].min().item()  # padding decodes to zeros
                bound += (2 * (math.sqrt(d) * integer + 2 * half) * reach + 64 * integer * value / shortest + 2 * half) * value
        return bound
