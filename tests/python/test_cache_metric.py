# SPDX-License-Identifier: Apache-2.0
"""Codes of keys are chosen by what the first call's queries make of their errors (docs/adr/0008)."""

from types import SimpleNamespace

import pytest
import torch
import where
from layer_pair import LayerPair
from tiny_models import prompt, tiny_model
from turboquant import TurboQuantCache, TurboQuantStaticCache, enable, ops
from turboquant.attention import turboquant_attention
from turboquant.carrier import rows_of
from turboquant.metric import DAMPING, PRIOR, QUERY_TOKENS, key_metric

pytestmark = pytest.mark.usefixtures("one_thread")


def signs_of(heads, dim):
    return torch.stack([ops.random_signs(dim, i) for i in range(heads)]) * torch.linspace(0.5, 2.0, dim)


@pytest.mark.parametrize("dim", [64, 80])
def test_a_metric_is_the_rotated_queries_damped_second_moment(dim):
    torch.manual_seed(0)
    query, signs = torch.randn(2, 6, 50, dim) + torch.randn(6, 1, dim), signs_of(2, dim)
    base = ops.hadamard_base(dim) if ops.hadamard_base_size(dim) > 1 else None
    found = key_metric(query, None, signs, base)
    rotated = ops.rotate(rows_of(query), signs.repeat_interleave(3, 0), base).double()
    for head in range(2):
        x = rotated[:, 3 * head : 3 * head + 3].flatten(0, 1)
        moment = x.T @ x
        moment += moment.trace() * (DAMPING / dim + PRIOR / len(x)) * torch.eye(dim)
        expected = moment * (127 / moment.diagonal().max())
        assert (found[head].double() - expected).abs().max() <= 0.51  # queries are rounded to 16 bits before
    assert found.dtype == torch.int8 and torch.equal(found, found.mT)


def test_a_metric_does_not_depend_on_the_order_of_queries_nor_on_padding_or_nan():
    torch.manual_seed(1)
    query, signs = torch.randn(1, 4, 90, 64), signs_of(2, 64)
    found = key_metric(query, None, signs, None)
    assert torch.equal(found, key_metric(query[:, :, torch.randperm(90)], None, signs, None))
    padded = torch.cat([torch.full((1, 4, 30, 64), 1e4), query], 2)
    assert torch.equal(found, key_metric(padded, torch.tensor([30], dtype=torch.int32), signs, None))
    padded[:, :, :30] = torch.nan
    assert torch.equal(found, key_metric(padded, None, signs, None))
    assert not key_metric(torch.zeros(1, 4, 9, 64), None, signs, None).any()


def test_a_long_call_is_sampled_evenly():
    torch.manual_seed(2)
    query, signs = torch.randn(1, 2, 3 * QUERY_TOKENS, 32), signs_of(1, 32)
    assert torch.equal(key_metric(query, None, signs, None), key_metric(query[:, :, ::3], None, signs, None))


@pytest.mark.parametrize("cache_class", [TurboQuantCache, TurboQuantStaticCache])
def test_a_cache_takes_its_metric_from_the_first_call_and_keeps_it(cache_class):
    model = enable(tiny_model("llama"))
    size = {"max_tokens": 128} if cache_class is TurboQuantStaticCache else {}
    with_metric, without = (cache_class(model.config, metric=metric, **size) for metric in (True, False))
    ids = prompt(tokens=80)["input_ids"]
    with torch.no_grad():
        for cache in (with_metric, without):
            model(ids, past_key_values=cache)
    one, other = with_metric.layers[0], without.layers[0]
    metric = one.key_metric.clone()
    assert other.key_metric is None and metric.diagonal(0, 1, 2).amax() == 127
    assert torch.equal(one.signs, other.signs) and torch.equal(one.key_signs, other.key_signs)
    assert with_metric.memory()["signs"] - without.memory()["signs"] == sum(x.key_metric.nbytes for x in with_metric.layers)
    with torch.no_grad():
        for cache in (with_metric, without):
            model(ids[:, :1], past_key_values=cache)
    assert torch.equal(one.key_metric, metric)
    pages = [x.pages if isinstance(x.pages, torch.Tensor) else x.pages.pool.data for x in (one, other)]
    assert not torch.equal(*pages)
    with_metric.reset()
    assert one.key_metric is None or not one.key_metric.any()


def test_a_step_of_one_token_is_coded_without_the_metric():
    cached, plain = (LayerPair(metric=metric, fringe=None) for metric in (True, False))
    for tokens in (80, 1, 1, 7):
        for pair in (cached, plain):
            pair.call(tokens)
        keys, others = (pair.layer.dequantize()[0] for pair in (cached, plain))
        same = (keys == others).all(-1)[0, :, -tokens:]
        assert same.all() if tokens == 1 else not same.all()


@pytest.mark.parametrize("balance", [True, False])
def test_steps_of_one_token_and_of_several_take_turns(balance):
    """Each is coded by its own rule, also where a step repeats the last one's arguments."""
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
        assert layer.balance_frozen == bool(tokens)
    assert layer.key_metric.diagonal(0, 1, 2).amax() == 127


def test_tokens_without_queries_leave_no_metric():
    pair = LayerPair()
    _, keys, values = pair.vectors(70)
    pair.layer.update(keys, values)
    pair.layer.flush()
    assert pair.layer.key_metric is None and pair.layer.length == 70
