# SPDX-License-Identifier: Apache-2.0
"""A cache's first tokens stay as the model gave them until there are `hold` of them; then they are coded as one call."""

import pytest
import torch
import where
from layer_pair import LayerPair
from tiny_models import prompt, tiny_model
from turboquant import TurboQuantCache, enable
from turboquant.attention import turboquant_attention

pytestmark = pytest.mark.usefixtures("one_thread")
HOLD = 20


def given(pair, calls):
    """Calls that the layer gets, and what it got: query, keys, values, over all of them."""
    seen = []
    for tokens in calls:
        seen.append(pair.vectors(tokens))
        query, keys, values = seen[-1]
        turboquant_attention(pair.module, query, *pair.layer.update(keys, values), None)
    return tuple(torch.cat(x, 2) for x in zip(*seen))


def all_bytes(layer):
    return layer.pages.pool.data, layer.pages.table, layer.fringe, layer.recent_starts, layer.key_signs, layer.query_signs


@pytest.mark.parametrize("calls", [(1,) * HOLD, (7, 1, 1, 11), (19, 1), (3, 90), (1,) * 5 + (60,)], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_bytes_are_those_of_one_call_with_all_the_tokens(calls, batch):
    pair, one = LayerPair(hold=HOLD, batch=batch), LayerPair(hold=HOLD, batch=batch)
    query, keys, values = given(pair, calls)
    turboquant_attention(one.module, query, *one.layer.update(keys, values), None)
    assert pair.layer.held is None and pair.layer.length == sum(calls)
    for ours, expected in zip(all_bytes(pair.layer), all_bytes(one.layer)):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("kwargs", [{}, dict(softcap=2.0, scaling=0.4), dict(sliding_window=9)], ids=str)
@pytest.mark.parametrize("fringe", [(4, 28), None])
def test_queries_see_the_held_tokens_exactly(kwargs, fringe):
    pair = LayerPair(hold=HOLD, fringe=fringe)
    query, keys, values = given(pair, (3, 1, 5, 1))
    layer = pair.layer
    assert layer.get_seq_length() == 10 and all(torch.equal(x, y) for x, y in zip(layer.dequantize(), (keys, values)))
    assert not layer.pages.rows[0] and layer.memory()["held"] == sum(x.nbytes for x in (query, keys, values))
    pair = LayerPair(hold=HOLD, fringe=fringe)
    for tokens in (3, 1, 5, 1, 1, 30, 1, 70, 1):
        pair.check(tokens, **kwargs)
    assert pair.layer.memory()["held"] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_models_append_from_nothing(dtype):
    pair = LayerPair(head_dim=64, heads=(6, 2), dtype=dtype, hold=HOLD)
    for _ in range(90):
        pair.check(1)


@pytest.mark.parametrize("window", [0, 12])
def test_left_padding_of_held_tokens_is_neither_seen_nor_stored(window):
    pair, starts = LayerPair(batch=3, hold=HOLD), (0, 4, 17)
    for tokens in (10, 1, 4, 1, 20, 1):
        position = pair.oracle.length + torch.arange(tokens)
        seen = position >= torch.tensor(starts)[:, None]
        pair.check(tokens, pair.mask(tokens, starts, window), seen=seen, sliding_window=window)
    assert pair.layer.starts == starts and pair.layer.held is None
    keys, values = pair.layer.dequantize()
    assert not keys[2, :, :17].any() and not values[2, :, :17].any()


def test_padding_of_held_tokens_decodes_to_zeros():
    pair = LayerPair(batch=2, hold=HOLD)
    pair.call(10, pair.mask(10, (0, 6)))
    keys, values = pair.layer.dequantize()
    assert not keys[1, :, :6].any() and not values[1, :, :6].any() and keys[1, :, 6:].all()


def test_any_mask_is_honoured_while_tokens_are_held():
    pair = LayerPair(hold=HOLD)
    pair.check(8)
    mask = pair.mask(3, (0,))
    mask[..., 2:5] = False
    pair.check(3, mask)
    assert not pair.layer.settings.warned  # nothing is dequantised for it
    pair.check(40)
    pair.check(1)


@pytest.fixture(params=["", "offloaded"])
def kind_of_layer(request, monkeypatch):
    monkeypatch.setattr(LayerPair, "offloaded", request.param == "offloaded")


@pytest.mark.usefixtures("kind_of_layer")
@pytest.mark.parametrize("kept", [10, 7, 1, -13])
def test_crop_keeps_held_tokens(kept):
    pair = LayerPair(batch=2, hold=HOLD)
    for tokens in (9, 1, 1):
        pair.check(tokens)
    for side in (pair.layer, pair.oracle):
        side.crop(kept)
    assert pair.layer.get_seq_length() == max(kept, 0)
    for tokens in (1, 2, 30, 1):
        pair.check(tokens)


def test_a_coded_cache_cropped_to_nothing_holds_again_and_keeps_its_balance():
    pair = LayerPair(hold=HOLD)
    pair.check(30)
    signs = pair.layer.key_signs
    for side in (pair.layer, pair.oracle):
        side.crop(-30)
    pair.check(3)
    assert pair.layer.held is not None
    for _ in range(40):
        pair.check(1)
    assert pair.layer.held is None and pair.layer.key_signs is signs


def test_a_crop_into_coded_tokens_does_not_hold_them_again():
    pair = LayerPair(hold=HOLD)
    pair.check(30)
    for side in (pair.layer, pair.oracle):
        side.crop(5)
    for _ in range(30):
        pair.check(1)
        assert pair.layer.held is None


@pytest.mark.usefixtures("kind_of_layer")
@pytest.mark.parametrize("order", [(2, 0, 1), (1, 1, 1), (2,), (0, 1, 2, 1, 0)])
def test_reorder_takes_held_tokens_along(order):
    pair = LayerPair(batch=3, hold=HOLD)
    pair.check(6)
    index = torch.tensor(order, device=where.DEVICE)
    for side in (pair.layer, pair.oracle):
        side.reorder_cache(index)
    pair.batch = len(order)
    for tokens in (1, 20, 1):
        pair.check(tokens)


def test_repeated_sequences_of_held_tokens_go_their_own_ways():
    pair = LayerPair(batch=2, hold=HOLD)
    pair.check(6)
    for side in (pair.layer, pair.oracle):
        side.batch_repeat_interleave(3)
    pair.batch = 6
    for tokens in (1, 20, 1):
        pair.check(tokens)


def test_reset_forgets_held_tokens_and_lets_another_batch_begin():
    pair = LayerPair(batch=2, hold=HOLD)
    pair.check(6)
    for side in (pair.layer, pair.oracle):
        side.reset()
    assert pair.layer.get_seq_length() == 0 and pair.layer.held is None
    pair.batch = 3
    for tokens in (6, 20, 1):
        pair.check(tokens)


def test_tokens_that_nothing_attended_to_are_held_too_and_leave_the_balance_at_one():
    pair = LayerPair(hold=HOLD)
    _, keys, values = pair.vectors(10)
    pair.layer.update(keys, values)
    pair.layer.flush()
    assert pair.layer.length == 10 and pair.layer.held is not None
    given(pair, (15,))
    assert pair.layer.held is None and pair.layer.key_signs is pair.layer.signs


def test_another_attention_sees_held_tokens_as_they_are():
    pair = LayerPair(hold=HOLD)
    _, keys, values = pair.vectors(10)
    pair.layer.update(keys, values)
    _, more_keys, more_values = pair.vectors(2)
    seen_keys, seen_values = pair.layer.update(more_keys, more_values)
    with pytest.warns(UserWarning, match="does not attend with 'turboquant'"):
        assert torch.equal(seen_keys.tensor(), torch.cat([keys, more_keys], 2))
    assert torch.equal(seen_values.tensor(), torch.cat([values, more_values], 2))


def test_an_error_leaves_held_tokens_as_they_were():
    pair = LayerPair(hold=HOLD)
    pair.check(10)
    query, keys, values = pair.vectors(2)
    with pytest.raises(ValueError, match="attention_mask has shape"):
        turboquant_attention(pair.module, query, *pair.layer.update(keys, values), pair.mask(3, (0,)))
    assert pair.layer.get_seq_length() == 10
    pair.check(1)
    pair.check(30)


def test_hold_counts_from_the_caches_constructor():
    model = enable(tiny_model("llama"))
    ids = prompt(tokens=12)["input_ids"]
    for hold, held in ((13, True), (12, False), (0, False)):
        cache = TurboQuantCache(model.config, hold=hold)
        with torch.no_grad():
            model(ids, past_key_values=cache)
        assert (cache.memory()["held"] > 0) == held
        assert (cache.memory()["pages"] == 0) == held
    with pytest.raises(ValueError, match="hold=-1 is negative"):
        TurboQuantCache(model.config, hold=-1)
