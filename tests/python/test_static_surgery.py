# SPDX-License-Identifier: Apache-2.0
"""Surgery on a TurboQuantStaticCache, in place, leaves what the same on a TurboQuantCache does."""

import copy

import pytest
import torch
from static_pair import StaticPair, assert_same_bytes
from tiny_models import generate, prompt, tiny_model
from turboquant import TurboQuantStaticCache, enable

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def llama():
    return enable(tiny_model())


def filled(model, batch=3, calls=(70, 1), **options):
    pair = StaticPair(model, batch=batch, **options)
    for tokens in calls:
        pair.check(tokens)
    return pair


def go_on(pair):
    for tokens in (1, 30, 1):
        pair.check(tokens)


@pytest.mark.parametrize("kept", [70, 64, 63, 3, -1, -10])
def test_crop(llama, kept):
    pair = filled(llama)
    for cache in (pair.static, pair.growing):
        cache.crop(kept)
    assert pair.static.length() == (kept if kept > 0 else 71 + kept)
    go_on(pair)


def test_crop_of_everything_keeps_the_balance_and_reset_does_not(llama):
    pair = filled(llama)
    balanced = pair.static.layers[0].key_signs.clone()
    for cache in (pair.static, pair.growing):
        cache.crop(-71)
    pair.check(9)
    assert torch.equal(pair.static.layers[0].key_signs, balanced)
    for cache in (pair.static, pair.growing):
        cache.reset()
    pair.check(9)
    assert not torch.equal(pair.static.layers[0].key_signs, balanced)
    go_on(pair)


def test_crop_into_padding_lets_the_next_mask_say_where_it_ends(llama):
    pair = StaticPair(llama)
    pair.pad((0, 20), 30)
    pair.check(30)
    pair.static.crop(10)
    assert pair.static.state.starts.tolist() == [0, 10]


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 1, 1), (0, 0, 2), (0, 1, 2)])
@pytest.mark.parametrize("method", ["reorder_cache", "batch_select_indices"])
def test_sequences_change_places_at_fixed_addresses(llama, order, method):
    pair = filled(llama)
    addresses = [x.data_ptr() for x in (pair.static.layers[1].pages, pair.static.layers[1].fringe, pair.static.state.lengths)]
    for cache in (pair.static, pair.growing):
        getattr(cache, method)(torch.tensor(order))
    assert [x.data_ptr() for x in (pair.static.layers[1].pages, pair.static.layers[1].fringe, pair.static.state.lengths)] == addresses
    go_on(pair)


@pytest.mark.parametrize("order", [(2,), (0, 1, 2, 1, 0)])
def test_more_or_fewer_sequences(llama, order):
    pair = filled(llama)
    for cache in (pair.static, pair.growing):
        cache.batch_select_indices(torch.tensor(order))
    pair.batch = len(order)
    go_on(pair)


def test_repeated_sequences(llama):
    pair = filled(llama, batch=2)
    for cache in (pair.static, pair.growing):
        cache.batch_repeat_interleave(2)
    pair.batch = 4
    go_on(pair)


@pytest.mark.parametrize("family", ["gemma3", "qwen3_next"])
def test_layers_that_are_not_compressed_follow(family):
    pair = filled(tiny_model(family), calls=(30, 1))
    held = {name: x.data_ptr() for name, x in vars(pair.static.layers[0]).items() if isinstance(x, torch.Tensor)}
    for order in ((2, 0, 1), (1, 1)):
        for cache in (pair.static, pair.growing):
            if len(order) == 3:
                cache.reorder_cache(torch.tensor(order))
            elif family == "gemma3":
                cache.batch_select_indices(torch.tensor(order))
        pair.batch = pair.static.state.batch
        assert len(order) == 2 or held == {n: x.data_ptr() for n, x in vars(pair.static.layers[0]).items() if n in held}
        pair.check(1)
    with pytest.raises(NotImplementedError, match=r"layers of type \['\w+'\] do not keep what a crop would bring back"):
        pair.static.crop(-1)
    pair.static.crop(0)


def test_a_copied_cache_serves_a_common_beginning(llama):
    shared = TurboQuantStaticCache(llama.config, max_tokens=100)
    beginning = prompt(tokens=70)["input_ids"]
    with torch.no_grad():
        llama(beginning, past_key_values=shared)
    for seed in (3, 4):
        question = torch.cat([beginning, prompt(tokens=9, seed=seed)["input_ids"]], dim=1)
        own = TurboQuantStaticCache(llama.config, max_tokens=100)
        with torch.no_grad():
            llama(beginning, past_key_values=own)
        copied = copy.deepcopy(shared)
        texts = [generate(llama, "turboquant", cache, dict(input_ids=question)).sequences for cache in (copied, own)]
        assert torch.equal(*texts)
        assert_same_bytes_of_statics(copied, own)
    assert shared.length() == 70


def assert_same_bytes_of_statics(one, other):
    for a, b in zip(one.layers, other.layers, strict=True):
        assert torch.equal(a.pages, b.pages) and torch.equal(a.fringe, b.fringe)


def test_surgery_before_the_first_call_does_nothing(llama):
    cache = TurboQuantStaticCache(llama.config, max_tokens=100)
    cache.crop(-1)
    cache.reorder_cache(torch.tensor([0]))
    cache.batch_repeat_interleave(2)
    cache.reset()
    pair = StaticPair(llama)
    pair.check(5)
    assert_same_bytes(pair.static, pair.growing)


@pytest.mark.filterwarnings("ignore:none of the 2 layers")
def test_a_cache_that_compresses_nothing():
    model = enable(tiny_model("mistral"))
    cache = TurboQuantStaticCache(model.config, max_tokens=100)
    with torch.no_grad():
        model(prompt(batch=2, tokens=30)["input_ids"], past_key_values=cache)
    keys = cache.layers[0].keys.clone()
    cache.reorder_cache(torch.tensor([1, 0]))
    assert torch.equal(cache.layers[0].keys, keys.flip(0)) and cache.length() == 30
    with pytest.raises(NotImplementedError, match="StaticWindowLayer"):
        cache.crop(-1)
    cache.reset()
    assert cache.length() == 0
