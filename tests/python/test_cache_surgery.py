# SPDX-License-Identifier: Apache-2.0
"""Surgery on the compressed bytes is surgery on what they decode to, and sequences stay independent after it."""

import pytest
import torch
import where
from layer_pair import LayerPair

pytestmark = pytest.mark.usefixtures("one_thread", "kind_of_layer")


# The fast kernels on CUDA are of 16 bits.
@pytest.fixture(params=["", "offloaded", *(["bfloat16"] if where.DEVICE == "cuda" else [])])
def kind_of_layer(request, monkeypatch):
    monkeypatch.setattr(LayerPair, "offloaded", request.param == "offloaded")
    if request.param == "bfloat16":
        monkeypatch.setattr(LayerPair, "shape", (128, torch.bfloat16))


def filled(calls=(100, 1, 1), batch=3, **settings):
    pair = LayerPair(batch=batch, **settings)
    for tokens in calls:
        pair.check(tokens)
    return pair


def go_on(pair):
    """Later calls still attend as the oracle does, over a page's end."""
    for tokens in (1, 30, 1):
        pair.check(tokens)


def assert_decodes_to(pair, keys, values):
    new_keys, new_values = pair.layer.dequantize()
    assert torch.equal(new_keys, keys) and torch.equal(new_values, values)


@pytest.mark.parametrize("kept", [101, 100, 74, 64, 63, 3, 1])
@pytest.mark.parametrize("absolute", [True, False], ids=["length", "tokens to remove"])
def test_crop_keeps_what_it_keeps(kept, absolute):
    pair = filled()
    keys, values = pair.layer.dequantize()
    for side in (pair.layer, pair.oracle):
        side.crop(kept if absolute else kept - 102)
    assert pair.layer.get_seq_length() == kept
    assert_decodes_to(pair, keys[:, :, :kept], values[:, :, :kept])
    go_on(pair)


def test_crop_by_a_tensor_leaves_a_length_that_is_a_number():
    pair = filled()
    pair.layer.crop(torch.tensor(-3, device=where.DEVICE))
    assert type(pair.layer.get_seq_length()) is int and pair.layer.get_seq_length() == 99


def test_crop_beyond_either_end():
    pair = filled()
    before = pair.layer.dequantize()
    for tokens in (0, 102, 5000):
        pair.layer.crop(tokens)
        assert_decodes_to(pair, *before)
    pair.layer.crop(-5000)
    assert pair.layer.get_seq_length() == 0
    assert len(pair.layer.pages.pool.free) == pair.layer.pages.pool.data.shape[0]
    pair.oracle.crop(-5000)
    go_on(pair)


def test_crop_after_crop_knows_what_the_fringe_still_holds():
    pair = filled()
    for kept in (95, 90, 71):
        for side in (pair.layer, pair.oracle):
            side.crop(kept)
        pair.check(2)
    go_on(pair)


def test_crop_into_padding_lets_the_next_mask_say_where_it_ends():
    pair = LayerPair(batch=2)
    pair.layer.update(*pair.vectors(50)[1:])
    pair.layer.set_starts((0, 30))
    pair.layer.crop(20)
    assert pair.layer.starts == (0, 20)


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 1, 1), (0, 0, 2), (2,), (0, 1, 2, 1, 0)])
@pytest.mark.parametrize("method", ["reorder_cache", "batch_select_indices"])
def test_reorder_and_select_take_whole_sequences(order, method):
    pair = filled()
    keys, values = pair.layer.dequantize()
    index = torch.tensor(order, device=where.DEVICE)
    for side in (pair.layer, pair.oracle):
        getattr(side, method)(index)
    pair.batch = len(order)
    assert_decodes_to(pair, keys[index], values[index])
    go_on(pair)


def test_select_takes_a_boolean_mask_too():
    pair = filled()
    keys, values = pair.layer.dequantize()
    chosen = torch.tensor([True, False, True], device=where.DEVICE)
    pair.layer.batch_select_indices(chosen)
    assert_decodes_to(pair, keys[chosen], values[chosen])


def test_repeat_shares_pages_and_copies_the_last_one_when_it_is_written():
    pair = filled(batch=2)
    pool = pair.layer.pages.pool
    keys, values = pair.layer.dequantize()
    used = lambda: sum(holders > 0 for holders in pool.holders)  # noqa: E731
    assert used() == 4  # two sequences of 102 tokens
    for side in (pair.layer, pair.oracle):
        side.batch_repeat_interleave(3)
    pair.batch = 6
    assert used() == 4
    assert_decodes_to(pair, keys.repeat_interleave(3, 0), values.repeat_interleave(3, 0))
    pair.check(1)
    assert used() == 2 + 6  # full pages shared, the partly filled ones not
    go_on(pair)


def test_beams_that_come_and_go_leak_no_page():
    pair = filled(batch=4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        order = torch.randint(4, (4,), generator=generator).to(where.DEVICE)
        for side in (pair.layer, pair.oracle):
            side.reorder_cache(order)
        pair.check(1)
    pages = pair.layer.pages
    held = {page for row in pages.rows for page in row}
    assert len(pages.pool.free) + len(held) == pages.pool.data.shape[0]
    assert sum(pages.pool.holders) == sum(len(row) for row in pages.rows)


def test_surgery_keeps_each_sequences_padding():
    pair = LayerPair(batch=3)
    starts = (0, 13, 66)
    pair.call(70, pair.mask(70, starts))
    order = torch.tensor([2, 0, 2, 1], device=where.DEVICE)
    for side in (pair.layer, pair.oracle):
        side.reorder_cache(order)
    pair.batch, starts = 4, (66, 0, 66, 13)
    assert pair.layer.starts == starts
    pair.check(1, pair.mask(1, starts))
    pair.check(5, pair.mask(5, starts))


def test_reset_begins_anew_with_any_batch():
    pair = filled()
    for side in (pair.layer, pair.oracle):
        side.reset()
    assert pair.layer.get_seq_length() == 0
    pair.check(80)
    for side in (pair.layer, pair.oracle):
        side.reset()
    pair.batch = 1
    pair.check(80)
    go_on(pair)


def test_a_reserved_cache_never_grows_and_says_when_it_is_full():
    pair = LayerPair(batch=2, max_tokens=150)
    pair.check(100)
    data = pair.layer.pages.pool.data
    assert data.shape[0] == 2 * 3  # 150 tokens are three pages
    pair.check(50)
    assert pair.layer.pages.pool.data is data
    before = pair.layer.dequantize()
    with pytest.raises(ValueError, match="151 tokens do not fit into max_tokens=150"):
        pair.check(1)
    assert_decodes_to(pair, *before)
    assert pair.layer.get_max_length() == 150
    pair.layer.batch_repeat_interleave(2)
    assert pair.layer.pages.pool.data.shape[0] == 4 * 3
