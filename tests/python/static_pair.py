# SPDX-License-Identifier: Apache-2.0
"""A TurboQuantStaticCache beside a TurboQuantCache of the same model: they get the same calls, and hold the same bytes.

But for models with layers that slide: those of the static cache lie in a ring, and their sums are rounded in another order."""

import torch
import where
from tiny_models import VOCABULARY
from turboquant import TurboQuantCache, TurboQuantStaticCache, enable
from turboquant.layers import TurboQuantLayer


def pages_and_fringe(cache):
    """Every byte that holds a token: per compressed layer, pages [batch, pages, kv_heads, page_bytes] in order, and the fringe."""
    held = []
    for layer in cache.layers:
        if isinstance(layer, TurboQuantLayer):
            table = layer.pages.table[:, : -(-layer.length // 64)].long()
            held.append((layer.pages.pool.data[table], layer.fringe))
        elif hasattr(layer, "state"):
            table = layer.state.table[:, : -(-layer.state.length() // 64)].long()
            held.append((layer.pages[table], layer.fringe))
    return held


def assert_same_bytes(static, growing):
    pairs = list(zip(pages_and_fringe(static), pages_and_fringe(growing), strict=True))
    assert pairs
    for (pages, fringe), (expected_pages, expected_fringe) in pairs:
        assert torch.equal(pages, expected_pages)
        assert fringe is expected_fringe or torch.equal(fringe, expected_fringe)


def slides(cache):
    return any(cache.is_sliding)


class StaticPair:
    """`forward` calls the model with the static cache; by default the model itself, else a compiled one. `twin`: the other cache is
    static as well, and the model itself is called with it."""

    def __init__(self, model, max_tokens=200, batch=2, twin=False, **options):
        self.model = enable(model)
        self.static = TurboQuantStaticCache(model.config, max_tokens, **options)
        self.growing = TurboQuantStaticCache(model.config, max_tokens, **options) if twin else TurboQuantCache(model.config, hold=0, **options)
        self.growing.settings.metric_grows = False
        self.same_bytes = twin or not slides(self.static)
        self.batch, self.device = batch, where.DEVICE
        self.generator = torch.Generator().manual_seed(7)
        self.mask = None

    def tokens(self, count):
        return torch.randint(1, VOCABULARY, (self.batch, count), generator=self.generator).to(self.device)

    def pad(self, padding, count):
        """The next call's mask: padding[i] positions of sequence i are padding."""
        position = torch.arange(count, device=self.device)
        self.mask = (position >= torch.tensor(padding, device=self.device)[:, None]).long()

    def check(self, count, forward=None):
        ids = self.tokens(count)
        options = {}
        if self.mask is not None:
            if self.growing.get_seq_length():
                self.mask = torch.cat([self.mask, self.mask.new_ones(self.batch, count)], dim=1)
            options = dict(attention_mask=self.mask)
        with torch.no_grad():
            call = self.model if forward is None else forward
            logits = call(ids, past_key_values=self.static, **options).logits
            expected = self.model(ids, past_key_values=self.growing, **options).logits
        if self.mask is not None:  # what padding attends to is anything
            real = self.mask[:, -count:].bool()
            logits, expected = logits[real], expected[real]
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
        if self.same_bytes:
            assert_same_bytes(self.static, self.growing)
        return logits
