# SPDX-License-Identifier: Apache-2.0
"""Codes of keys are chosen by what the first tokens' queries make of their errors (docs/adr/0008)."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
import where
from layer_pair import LayerPair
from tiny_models import prompt, tiny_model
from turboquant import TurboQuantCache, TurboQuantStaticCache, enable, ops
from turboquant.attention import turboquant_attention
from turboquant.metric import Growth, key_metric

pytestmark = pytest.mark.usefixtures("one_thread")


def metric_of(seen, layer):
    """Of queries [batch, q_heads, tokens, head_dim] that came one call after another."""
    return key_metric(torch.cat(seen, 2), None, layer.query_signs, layer.base)


@pytest.mark.parametrize("cache_class", [TurboQuantCache, TurboQuantStaticCache])
def test_a_cache_takes_its_metric_from_the_first_call(cache_class):
    model = enable(tiny_model("llama"))
    size = {"max_tokens": 200} if cache_class is TurboQuantStaticCache else {}
    with_metric, without = (cache_class(model.config, metric=metric, **size) for metric in (True, False))
    ids = prompt(tokens=80)["input_ids"]
    with torch.no_grad():
        for cache in (with_metric, without):
            model(ids, past_key_values=cache)
    one, other = with_metric.layers[0], without.layers[0]
    metric = one.key_metric.clone()
    assert other.key_metric is None and metric.diagonal(0, 1, 2).amax() == 127
    assert torch.equal(one.signs, other.signs) and torch.equal(one.key_signs, other.key_signs)
    moments = 4 if cache_class is TurboQuantCache else 0  # bytes, for those of the metric
    assert with_metric.memory()["signs"] - without.memory()["signs"] == sum((1 + moments) * x.key_metric.nbytes for x in with_metric.layers)
    pages = [x.pages if isinstance(x.pages, torch.Tensor) else x.pages.pool.data for x in (one, other)]
    assert not torch.equal(*pages)
    with torch.no_grad():
        for cache in (with_metric, without):
            model(ids[:, :70], past_key_values=cache)
    assert torch.equal(one.key_metric, metric) == (cache_class is TurboQuantStaticCache)
    with_metric.reset()
    assert one.key_metric is None or not one.key_metric.any()


def test_a_metric_grows_in_place_until_enough_was_seen(monkeypatch):
    monkeypatch.setattr("turboquant.metric.QUERY_TOKENS", 300)
    pair, seen = LayerPair(batch=2, hold=20), []
    tokens, made, address = 0, 0, None
    for size in (7, 13, 3, 50, 2, 75, 9, 3):  # the metric is made again when 64 more were seen
        query, keys, values = pair.vectors(size)
        turboquant_attention(pair.module, query, *pair.layer.update(keys, values), None)
        tokens += 2 * size
        seen = [torch.cat([*seen, query], 2)] if tokens <= 40 else [*seen, query] if tokens - 2 * size < 300 else seen
        if tokens >= 40:
            if min(tokens, 300) >= made + 64 or not made:
                expected, made = metric_of(seen, pair.layer), tokens
            assert torch.equal(pair.layer.key_metric, expected)
            address = address or pair.layer.key_metric.data_ptr()
            assert pair.layer.key_metric.data_ptr() == address
            assert (pair.layer.growth is None) == (tokens >= 300)
    assert len(seen) == 5


def test_steps_of_one_token_are_seen_until_there_are_128_and_then_every_eighth():
    pair, seen = LayerPair(hold=20), []
    given = pair.vectors(100)
    turboquant_attention(pair.module, given[0], *pair.layer.update(*given[1:]), None)
    expected = pair.layer.key_metric.clone()
    for step in range(1, 200):
        query, keys, values = pair.vectors(1)
        turboquant_attention(pair.module, query, *pair.layer.update(keys, values), None)
        if step <= 28 or (step - 28) % 8 == 0:
            seen.append(query)
        assert pair.layer.growth.tokens == 100 + len(seen)
        if step in (68, 132, 196):  # the first to be seen of the next 64
            expected = metric_of([given[0], *seen], pair.layer)
        assert torch.equal(pair.layer.key_metric, expected)


@pytest.mark.parametrize("readers", [1, 3])
def test_readers_of_one_update_grow_the_metric_once(readers):
    pair = LayerPair(readers=readers, hold=20)
    for size in (30, 6):
        query, keys, values = pair.vectors(size)
        halves = pair.layer.update(keys, values)
        for reader in range(readers):
            turboquant_attention(pair.module, query if reader == 0 else -2 * query.flip(1), *halves, None)
    assert pair.layer.growth.tokens == 36


def grown(layer):
    return layer.growth.tokens, layer.growth.moment.triu(), layer.key_metric


@pytest.mark.parametrize("offloaded", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.crop(-5),
        lambda layer: layer.crop(-90),
        lambda layer: layer.reorder_cache(torch.tensor([1, 0])),
        lambda layer: layer.batch_repeat_interleave(2),
        lambda layer: layer.batch_select_indices(torch.tensor([1])),
        copy.deepcopy,
        lambda layer: pickle.loads(pickle.dumps(layer)),
    ],
    ids=["crop", "crop to nothing", "reorder", "repeat", "select", "copy", "pickle"],
)
def test_what_is_done_to_a_cache_leaves_its_metric_and_how_far_it_has_grown(change, offloaded, monkeypatch):
    monkeypatch.setattr(LayerPair, "offloaded", offloaded)
    pair = LayerPair(batch=2, hold=20)
    for tokens in (30, 6, 1):
        pair.call(tokens)
    tokens, moment, metric = grown(pair.layer)
    moment, metric = moment.clone(), metric.clone()
    layer = change(pair.layer) or pair.layer
    assert grown(layer)[0] == tokens == 74
    assert torch.equal(grown(layer)[1], moment) and torch.equal(grown(layer)[2], metric)
    assert layer.growth.metric is layer.key_metric
    if layer is not pair.layer:
        assert layer.growth.moment.data_ptr() != pair.layer.growth.moment.data_ptr()


@pytest.mark.parametrize("tokens", [1023, 1024, 2047, 2048, 2049, 3000, 4095, 5000, 11264, 131080])
def test_a_call_that_is_long_enough_makes_a_metric_for_good_of_1024_tokens_or_more(tokens):
    growth, signs = Growth(2, torch.ones(1, 32)), torch.ones(1, 32)
    query = torch.randn(1, 2, tokens, 32)
    growth.see(query, None, signs, None)
    assert growth.done == (tokens >= 1024) and min(tokens, 2048) <= growth.tokens < 4096
    step = max(tokens // 2048, 1)
    assert torch.equal(growth.metric, key_metric(query[:, :, step - 1 :: step], None, signs, None))


def test_steps_behind_a_long_first_call_see_nothing_more():
    pair = LayerPair(heads=(2, 1))
    for tokens in (2049, 1, 1, 5, 1, 70, 1):
        query, keys, values = pair.vectors(tokens)
        turboquant_attention(pair.module, query, *pair.layer.update(keys, values), None)
        assert pair.layer.growth is None
        first = pair.layer.key_metric.clone() if tokens == 2049 else first
        assert torch.equal(pair.layer.key_metric, first)


def test_padding_in_a_later_call_is_not_seen():
    layers = []
    for other in (False, True):
        pair, starts = LayerPair(batch=2, hold=20), (100, 0)
        for tokens in (70, 70, 1):
            query, keys, values = pair.vectors(tokens)
            begin = pair.oracle.length
            if other:
                query[0, :, : max(100 - begin, 0)] *= torch.linspace(-3, 3, 32).to(query)
            turboquant_attention(pair.module, query, *pair.layer.update(keys, values), pair.mask(tokens, starts))
            pair.oracle.length += tokens
        layers.append(pair.layer)
    assert layers[0].starts == (100, 0) and torch.equal(layers[0].key_metric, layers[1].key_metric)
    assert torch.equal(layers[0].growth.moment.triu(), layers[1].growth.moment.triu())


def test_an_operator_that_refuses_leaves_a_growth_as_it_was():
    growth, signs = Growth(2, torch.ones(1, 32)), torch.ones(1, 32)
    with pytest.raises(ValueError, match="head_dim"):
        growth.see(torch.randn(1, 2, 70, 48), None, signs, None)
    growth.see(torch.ones(1, 2, 70, 32), None, signs, None)
    assert growth.tokens == 70 and torch.equal(growth.metric, key_metric(torch.ones(1, 2, 70, 32), None, signs, None))


def test_reset_forgets_how_far_the_metric_had_grown():
    pair = LayerPair(hold=20)
    pair.check(30)
    pair.layer.reset()
    assert pair.layer.growth is None and pair.layer.key_metric is None
    query, keys, values = pair.vectors(40)
    turboquant_attention(pair.module, query, *pair.layer.update(keys, values), None)
    assert torch.equal(pair.layer.key_metric, metric_of([query], pair.layer)) and pair.layer.growth.tokens == 40


def test_many_query_heads_a_kv_head_are_sampled_to_what_a_moment_holds():
    growth = Growth(128, torch.ones(1, 32))
    assert growth.most == 341
    for tokens in (150, 700):
        assert not growth.done
        growth.see(torch.randn(1, 128, tokens, 32), None, torch.ones(1, 32), None)
    assert growth.done and growth.tokens == 500 <= ops.METRIC_QUERIES // 128


def test_a_step_of_one_token_is_coded_with_the_metric():
    cached, plain = (LayerPair(metric=metric, fringe=None) for metric in (True, False))
    for pair in (cached, plain):
        pair.call(80)
    keys = []
    for _ in range(20):
        for pair in (cached, plain):
            pair.check(1)
        keys.append([pair.layer.dequantize()[0][:, :, -1:] for pair in (cached, plain)])
    assert not torch.equal(*(torch.cat(x, 2) for x in zip(*keys)))


@pytest.mark.parametrize("balance", [True, False])
def test_steps_of_one_token_and_of_several_take_turns(balance):
    """Also where a step repeats the last one's arguments, and the metric has grown between them."""
    pair = LayerPair(batch=2, balance=balance, fringe=None)
    for tokens in (80, 5, 5, 5, 5, 1, 1, 1, 1, 5, 5, 5, 1, 20):
        pair.check(tokens)
    for ours, expected in zip(pair.layer.dequantize(torch.float32), pair.oracle.history()):
        assert torch.equal(ours, expected.float())


def test_a_first_call_without_tokens_leaves_balance_and_metric_to_the_next():
    model = enable(tiny_model("llama"))
    cache = TurboQuantStaticCache(model.config, max_tokens=128)
    layer, module = cache.layers[0], SimpleNamespace(training=False, is_causal=True, num_key_value_groups=2)
    generator = torch.Generator().manual_seed(0)
    for tokens in (0, 70):
        query, keys, values = (torch.randn(1, heads, tokens, 32, generator=generator).to(where.DEVICE) for heads in (4, 2, 2))
        turboquant_attention(module, query, *cache.update(keys, values, 0), None)
        assert layer.basis_known == bool(tokens)
    assert layer.key_metric.diagonal(0, 1, 2).amax() == 127


def test_tokens_without_queries_leave_no_metric():
    pair = LayerPair()
    _, keys, values = pair.vectors(70)
    pair.layer.update(keys, values)
    pair.layer.flush()
    assert pair.layer.key_metric is None and pair.layer.length == 70
