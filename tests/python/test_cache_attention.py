# SPDX-License-Identifier: Apache-2.0
"""The registered attention against dense double-precision attention, on the same vectors."""

import copy
import weakref

import pytest
import torch
import where
from layer_pair import LayerPair
from turboquant.attention import turboquant_attention

pytestmark = pytest.mark.usefixtures("one_thread")
CALLS = (70, 1, 1, 5, 60, 1, 1)  # prefill, decoding, a draft of several tokens, a chunk, decoding
SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0], device=where.DEVICE)


@pytest.mark.parametrize("head_dim", [32, 48, 80, 112, 128, 256])
def test_every_head_dim_attends_as_the_oracle_does(head_dim):
    pair = LayerPair(head_dim=head_dim)
    for tokens in CALLS:
        pair.check(tokens)


@pytest.mark.parametrize("k_bits", [2, 3, 4])
@pytest.mark.parametrize("v_bits", [2, 3, 4])
def test_every_width_attends_as_the_oracle_does(k_bits, v_bits):
    pair = LayerPair(k_bits=k_bits, v_bits=v_bits)
    for tokens in CALLS:
        pair.check(tokens)


@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (8, 1), (7, 7)])
def test_any_group_of_query_heads_reads_its_kv_head(heads):
    pair = LayerPair(heads=heads)
    for tokens in CALLS:
        pair.check(tokens)


@pytest.mark.parametrize("fringe", [None, (4, 0), (0, 8), (1, 3), (70, 30)])
@pytest.mark.parametrize("balance", [True, False])
def test_every_fringe_with_and_without_balance(fringe, balance):
    pair = LayerPair(fringe=fringe, balance=balance)
    for tokens in CALLS:
        pair.check(tokens)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("head_dim", "heads"), [(32, (4, 2)), (64, (6, 2)), (128, (8, 1)), (256, (4, 4)), (128, (32, 1))], ids=str)
def test_16_bit_models(head_dim, heads, dtype):
    pair = LayerPair(head_dim=head_dim, heads=heads, dtype=dtype)
    for tokens in CALLS:
        pair.check(tokens)


@pytest.mark.parametrize(
    "kwargs",
    [dict(scaling=0.3), dict(softcap=2.0), dict(s_aux=SINKS), dict(sliding_window=20), dict(sliding_window=68)]
    + [dict(softcap=1.5, s_aux=SINKS, sliding_window=33, scaling=0.5)],
    ids=lambda kwargs: "+".join(kwargs),
)
def test_scaling_softcap_sinks_and_window_are_honoured(kwargs):
    pair = LayerPair()
    for tokens in CALLS:
        pair.check(tokens, **kwargs)


@pytest.mark.parametrize("window", [0, 20])
def test_left_padding_is_neither_seen_nor_stored(window):
    starts = (0, 13, 66)
    pair = LayerPair(batch=3)
    for tokens in CALLS:
        position = pair.oracle.length + torch.arange(tokens)
        pair.check(
            tokens, pair.mask(tokens, starts, window), seen=position >= torch.tensor(starts)[:, None], sliding_window=window
        )
    assert pair.layer.starts == starts
    assert not pair.layer.settings.warned  # all of it the fast way


def test_a_sequence_may_still_be_padding_when_the_first_chunk_ends():
    starts = (0, 40, 75)
    pair = LayerPair(batch=3)
    for tokens in (30, 30, 30, 1):
        position = pair.oracle.length + torch.arange(tokens)
        pair.check(tokens, pair.mask(tokens, starts), seen=position >= torch.tensor(starts)[:, None])
    assert pair.layer.starts == starts


def test_an_additive_mask_means_what_the_boolean_one_means():
    pair, same = LayerPair(batch=2), LayerPair(batch=2)
    for tokens in (40, 1, 7):
        mask = pair.mask(tokens, (0, 9))
        added = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
        ours, _, _ = pair.call(tokens, mask)
        query, keys, values = same.vectors(tokens)
        other, _ = turboquant_attention(same.module, query, *same.layer.update(keys, values), added)
        same.oracle.length += tokens
        assert torch.equal(ours[0], other[0])
        assert torch.equal(ours[1, -1], other[1, -1])
    assert same.layer.starts == (0, 9)
    assert not same.layer.settings.warned


@pytest.mark.parametrize("kind", ["hole in the history", "two sequences in a row", "block without order", "per head"])
def test_any_other_mask_is_honoured_by_the_slow_path_that_says_so(kind):
    pair = LayerPair()
    pair.check(70)
    tokens = 6
    mask = pair.mask(tokens, (0,))
    if kind == "hole in the history":
        mask[..., 10:20] = False
    elif kind == "two sequences in a row":
        mask[..., 3:, :73] = False
    elif kind == "block without order":
        mask[..., -4:, -4:] = True
    else:
        mask = mask.repeat(1, 4, 1, 1)
        mask[:, 1, :, 5] = False
    with pytest.warns(UserWarning, match="attention_mask is more than causal"):
        pair.check(tokens, mask)
    pair.check(1)


def test_a_bias_in_the_mask_is_added():
    pair = LayerPair()
    pair.check(70)
    query, keys, values = pair.vectors(2)
    bias = torch.linspace(-3, 3, 72, device=where.DEVICE).expand(1, 1, 2, 72).clone()
    bias[..., 0, 71] = torch.finfo(torch.float32).min
    old_keys, old_values = pair.oracle.history()
    key, value = torch.cat([old_keys, keys], 2), torch.cat([old_values, values], 2)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query.double(), key.double(), value.double(), attn_mask=bias.double(), enable_gqa=True
    )
    with pytest.warns(UserWarning, match="attention_mask is more than causal"):
        ours, _ = turboquant_attention(pair.module, query, *pair.layer.update(keys, values), bias)
    bound = pair.bound(query, keys, values) + 4 * 2.0**-24 * 3 * values.norm(dim=-1).max()
    assert (ours.transpose(1, 2) - expected).abs().max() <= bound


def test_attention_that_is_not_causal_sees_the_whole_call():
    pair = LayerPair()
    pair.module.is_causal = False
    everything = torch.ones(1, 1, 70, 70, dtype=torch.bool, device=where.DEVICE)
    query, keys, values = pair.vectors(70)
    ours, _ = turboquant_attention(pair.module, query, *pair.layer.update(keys, values), None)
    expected = torch.nn.functional.scaled_dot_product_attention(query, keys, values, everything, enable_gqa=True)
    torch.testing.assert_close(ours.transpose(1, 2), expected)


def test_a_cache_may_begin_with_a_single_token():
    pair = LayerPair()
    for _ in range(70):
        pair.check(1)


def test_a_nan_spoils_its_own_token_only():
    pair = LayerPair(fringe=None)
    query, keys, values = pair.vectors(66)
    keys[:, :, 10, 3] = float("nan")
    turboquant_attention(pair.module, query, *pair.layer.update(keys, values), None)
    keys, values = pair.layer.dequantize()
    assert keys[:, :, 10].isnan().all()
    assert keys[:, :, :10].isfinite().all() and keys[:, :, 11:].isfinite().all() and values.isfinite().all()


@pytest.mark.parametrize("starts", [None, (0, 3)], ids=["no mask", "left padding"])
def test_steps_like_the_last_give_the_bits_of_steps_that_are_not(starts):
    """The operator keeps what is the same from step to step; whatever changes meanwhile, nothing is seen of it."""
    sinks = torch.nn.Parameter(torch.randn(4, device=where.DEVICE))
    kwargs = dict(scaling=0.2, s_aux=sinks, sliding_window=50)
    pair = [LayerPair(batch=2, hold=0) for _ in range(2)]
    pair[1].layer.stays = False  # so that none of its steps is prepared
    prepared = []

    def step(tokens: int = 1) -> None:
        out = []
        for p in pair:
            positions = torch.arange(p.layer.length + tokens)
            own = positions[p.layer.length :, None]
            mask = None if starts is None else (positions <= own) & (positions > own - 50) & (positions >= torch.tensor(starts)[:, None, None])
            mask = None if mask is None else mask[:, None].to(where.DEVICE)
            query, keys, values = p.vectors(tokens)
            out.append(turboquant_attention(p.module, query, *p.layer.update(keys, values), mask, **kwargs)[0])
        assert torch.equal(*out)
        prepared.append(pair[0].layer.prepared is not None and pair[0].layer.prepared.state is not None)

    def steps(count: int) -> list[bool]:
        prepared.clear()
        for _ in range(count):
            step()
        return prepared

    step(60)
    with torch.no_grad():
        assert steps(4) == [False, True, True, True]
        assert steps(5)[-1]  # over the end of a page: the pool and the table grow
        for p in pair:
            p.layer.crop(-3)
        assert steps(3)[-1]
        for p in pair:
            p.layer.reorder_cache(torch.tensor([1, 1]) if starts is None else torch.tensor([1, 0]))
        starts = starts and starts[::-1]
        assert not steps(1)[-1] and steps(3)[-1]
        copies = copy.deepcopy([p.layer for p in pair])
        step()
        for p, copied in zip(pair, copies):
            p.layer = copied
        assert copies[0].prepared is None and steps(3)[-1]
        sinks.mul_(0.5)
        assert not steps(1)[-1] and steps(2)[-1]
        for p in pair:
            p.layer.reset()
        step(70)
        assert steps(3)[-1]
    assert pair[1].layer.prepared is None


def test_a_prepared_step_takes_tokens_in_any_strides():
    pair = [LayerPair(batch=2, hold=0) for _ in range(2)]
    pair[1].layer.stays = False
    for spread in (False, False, False, False, True, True, False, False):
        out = []
        for p in pair:
            vectors = [x.repeat_interleave(2, -1)[..., ::2] if spread else x for x in p.vectors(1)]
            out.append(turboquant_attention(p.module, vectors[0], *p.layer.update(*vectors[1:]), None)[0])
        assert torch.equal(*out)


def test_steps_go_on_in_another_dtype():
    pair = [LayerPair(batch=2, hold=0) for _ in range(2)]
    pair[1].layer.stays = False
    for dtype in (*[torch.float32] * 4, *[torch.bfloat16] * 4, torch.float32):
        out = []
        for p in pair:
            query, keys, values = (x.to(dtype) for x in p.vectors(1))
            out.append(turboquant_attention(p.module, query, *p.layer.update(keys, values), None)[0])
        assert out[0].dtype == dtype and torch.equal(*out)
    assert pair[0].layer.prepared is not None


def test_a_failed_call_leaves_no_pages_with_a_prepared_layer():
    pair = LayerPair(batch=2, hold=0)
    for tokens in (70, 1, 1, 1):
        query, keys, values = pair.vectors(tokens)
        turboquant_attention(pair.module, query, *pair.layer.update(keys, values), None)
    assert pair.layer.prepared.state is not None
    rows = [list(row) for row in pair.layer.pages.rows]
    query, keys, values = pair.vectors(200)
    with pytest.raises(ValueError, match="1 queries came with 200 keys"):
        turboquant_attention(pair.module, query[:, :, :1], *pair.layer.update(keys, values), None)
    assert pair.layer.pages.rows == rows and pair.layer.length == 73


@pytest.mark.parametrize(("part", "spoil"), [(1, "double"), (2, "double"), (2, "bfloat16"), (2, "fewer"), (1, "shorter"), (2, "shorter")])
def test_a_prepared_layer_refuses_a_wrong_step_and_goes_on_as_before(part, spoil):
    """Steps of a prepared layer are looked at by the operator."""
    pair = [LayerPair(hold=0) for _ in range(2)]
    for tokens in (70, 1, 1, 1, 0, 1, 1):
        given = [p.vectors(tokens or 1) for p in pair]
        if tokens == 0:
            assert pair[0].layer.prepared.state is not None
            wrong = list(given[0])
            cut = {"fewer": lambda x: x[:, :1], "shorter": lambda x: x[..., :16]}.get(spoil, lambda x: x.to(getattr(torch, spoil)))
            wrong[part] = cut(wrong[part])
            with pytest.raises((ValueError, NotImplementedError)):
                turboquant_attention(pair[0].module, wrong[0], *pair[0].layer.update(*wrong[1:]), None)
            continue
        out = [turboquant_attention(p.module, query, *p.layer.update(keys, values), None)[0] for p, (query, keys, values) in zip(pair, given)]
        assert torch.equal(*out)
    assert torch.equal(pair[0].layer.dequantize()[1], pair[1].layer.dequantize()[1])


def test_a_prepared_step_keeps_no_memory_that_the_cache_has_left():
    pair = LayerPair(hold=0)
    layer = pair.layer

    def call(tokens: int) -> None:
        query, keys, values = pair.vectors(tokens)
        turboquant_attention(pair.module, query, *layer.update(keys, values), None)

    for grow in (lambda: call(1), lambda: call(100), lambda: layer.update(*pair.vectors(100)[1:]) and layer.flush()):
        call(61 - layer.length % 64)
        for _ in range(3):
            call(1)
        assert layer.length % 64 == 0 and layer.prepared.state is not None
        pages = weakref.ref(layer.pages.pool.data)
        grow()
        assert pages() is None
    for _ in range(3):
        call(1)
    pages, fringe = weakref.ref(layer.pages.pool.data), weakref.ref(layer.fringe)
    layer.reorder_cache(torch.tensor([0]))
    assert fringe() is None
    layer.reset()
    pair.batch = 2
    call(70)
    assert pages() is None
