# SPDX-License-Identifier: Apache-2.0
"""The operators compute what their docstrings say: attend against torch's SDPA on decoded values."""

import math

import pytest
import torch
from paged import Paged, int32
from torch import Tensor

from turboquant import ops

UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def seen(paged: Paged, i: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values [kv_heads, positions, head_dim] of sequence i in double, and its mask [own, positions]."""
    length, own = paged.history[i], paged.own[i]
    first = sum(paged.own[:i])
    parts = [tensor[i, :, :length].double() for tensor in paged.decode()]
    if paged.arguments["keys"] is not None:
        rows = slice(first, first + own)
        parts = [
            torch.cat([old, paged.arguments[name][rows].transpose(0, 1).double()], dim=1)
            for old, name in zip(parts, ("keys", "values"))
        ]
    position = torch.arange(parts[0].shape[1])
    query_position = length + torch.arange(own)[:, None]
    mask = position <= query_position
    if paged.starts is not None:
        mask &= position >= int(paged.starts[i])
    if window := paged.arguments["window"]:
        mask &= position > query_position - window
    return *parts, mask


def bounds(paged: Paged, keys: Tensor, values: Tensor, query: Tensor) -> tuple[float, float]:
    """Of the errors of out and lse: fp32 sums and rotations of this length, then the output's rounding."""
    unit, d, n = 2.0**-24, paged.head_dim, keys.shape[1]
    base = ops.hadamard_base_size(d)
    rotation = math.log2(d // base) + base + 2  # roundings on the way of one coordinate, signs and scale too
    largest = float(query.norm(dim=-1).max() * keys.norm(dim=-1).max())
    score = paged.arguments["scale"] * largest * (d + 2 + 2 * rotation) * unit
    weight = math.expm1(2 * score) + (n + 8) * unit
    value = float(values.norm(dim=-1).max())
    out = value * (2 * weight + (2 * rotation + n) * unit) + value * UNIT[paged.dtype]
    return out, score + (n + 8 + 16) * unit


def check_attend(paged: Paged) -> None:
    out, lse = paged.attend()
    assert out.dtype == paged.dtype and lse.dtype == torch.float32
    for i, own in enumerate(paged.own):
        rows = slice(sum(paged.own[:i]), sum(paged.own[: i + 1]))
        query = paged.arguments["query"][rows].transpose(0, 1).double()
        keys, values, mask = seen(paged, i)
        if not own or not keys.shape[1]:
            continue
        expected = torch.nn.functional.scaled_dot_product_attention(
            query[None],
            keys[None],
            values[None],
            attn_mask=mask,
            scale=paged.arguments["scale"],
            enable_gqa=True,
        )[0].transpose(0, 1)
        scores = query @ keys.repeat_interleave(paged.group, 0).transpose(1, 2) * paged.arguments["scale"]
        expected_lse = scores.masked_fill(~mask, -math.inf).logsumexp(-1).T
        out_bound, lse_bound = bounds(paged, keys, values, query)
        assert (out[rows].double() - expected).abs().max() <= out_bound
        assert (lse[rows].double() - expected_lse).abs().max() <= lse_bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fringe", [(0, 0), (4, 28)])
def test_attend_is_sdpa_over_what_decode_returns_and_the_calls_own_tokens(dtype, fringe):
    first, recent = fringe
    check_attend(Paged(history=(130, 0, 37), own=(1, 6, 3), first=first, recent=recent, dtype=dtype))


@pytest.mark.parametrize("head_dim", [32, 80, 96, 128])
@pytest.mark.parametrize("bits", [(4, 4), (3, 2), (2, 3)])
def test_attend_is_sdpa_at_every_kind_of_head_dim_and_width(head_dim, bits):
    k_bits, v_bits = bits
    check_attend(Paged(head_dim=head_dim, k_bits=k_bits, v_bits=v_bits, group=3))


def test_attend_sees_only_the_window_and_no_padding():
    check_attend(Paged(history=(130, 20, 5), own=(2, 3, 1), starts=int32(3, 0, 5)).but(window=16))


def test_attend_without_keys_sees_the_pages_alone():
    check_attend(Paged(history=(70, 9), own=(1, 2)).but(keys=None, values=None))


@pytest.mark.parametrize("variant", [{}, {"first": 4, "recent": 8, "starts": int32(3, 0, 5), "dtype": torch.bfloat16}])
@pytest.mark.parametrize("own", [(1, 1, 1), (4, 4, 4), (70, 70, 70)])
def test_attend_encode_is_attend_and_then_encode_bit_for_bit(variant, own):
    apart, together = Paged(own=own, **variant), Paged(own=own, **variant)
    expected, _ = apart.attend()
    apart.encode()
    assert torch.equal(together.attend_encode(), expected)
    for name in ("pages", "fringe"):
        if apart.arguments[name] is not None:
            assert torch.equal(together.arguments[name], apart.arguments[name])


def test_softcap_limits_scores():
    paged = Paged(history=(40,), own=(1,), group=1)
    scale, cap = 0.5, 2.0
    out, lse = paged.but(scale=scale, softcap=cap).attend()
    keys, values, _ = seen(paged, 0)
    query = paged.arguments["query"].transpose(0, 1).double()
    scores = cap * torch.tanh(query @ keys.transpose(1, 2) * scale / cap)
    out_bound, lse_bound = bounds(paged.but(scale=scale), keys, values, query)
    assert ((scores.softmax(-1) @ values).transpose(0, 1) - out).abs().max() <= out_bound
    assert (scores.logsumexp(-1).T - lse).abs().max() <= lse_bound


def test_a_sink_takes_its_share_of_the_softmax():
    paged = Paged()
    out, lse = paged.attend()
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    out_with, lse_with = paged.but(sinks=sinks).attend()
    share = torch.exp(lse.double() - torch.logaddexp(lse.double(), sinks.double()))
    # Two roundings of out, one of lse, each of values of at most a few units.
    assert (out_with - out * share[..., None]).abs().max() <= 2.0**-18
    assert (lse_with - torch.logaddexp(lse, sinks)).abs().max() <= 2.0**-18


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_empty_sequence_attends_to_zeros_with_an_lse_of_minus_infinity(dtype):
    paged = Paged(history=(0, 10), own=(2, 1), dtype=dtype).but(keys=None, values=None)
    out, lse = paged.attend()
    assert torch.equal(out[:2], torch.zeros_like(out[:2]))
    assert torch.equal(lse[:2], torch.full_like(lse[:2], -math.inf))
    assert lse[2].isfinite().all()


def test_a_call_without_tokens_or_sequences_is_empty_and_allowed():
    for paged in (Paged(history=(10,), own=(0,)), Paged(history=(), own=())):
        out, lse = paged.attend()
        assert out.shape == (0, 4, 64) and lse.shape == (0, 4)
        paged.encode()


def test_a_sequence_without_pages_attends_to_its_own_tokens():
    paged = Paged(history=(0,), own=(3,))
    check_attend(paged.but(page_table=torch.zeros(1, 0, dtype=torch.int32), pages=paged.arguments["pages"][:0]))


def test_query_keys_and_values_may_have_any_strides_but_the_last():
    paged = Paged()
    # [heads, tokens, head_dim] seen as [tokens, heads, head_dim], as models lay them out.
    moved = {
        name: paged.arguments[name].transpose(0, 1).contiguous().transpose(0, 1)
        for name in ("query", "keys", "values")
    }
    assert not moved["query"].is_contiguous()
    for a, b in zip(paged.attend(), paged.but(**moved).attend()):
        assert torch.equal(a, b)
    pages = [torch.zeros_like(paged.arguments["pages"]) for _ in range(2)]
    paged.but(pages=pages[0]).encode()
    paged.but(pages=pages[1], **moved).encode()
    assert torch.equal(*pages)


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("variant", [dict(), dict(first=4, recent=8, head_dim=48, starts=int32(3, 0, 5), dtype=torch.bfloat16)])
def test_steps_of_a_prepared_attend_encode_are_those_of_attend_encode_bit_for_bit(variant, tokens):
    one = Paged(history=(70, 9, 5), own=(tokens,) * 3, **variant)
    size = ops.attend_workspace_bytes(one.head_dim, 4, 4, kv_heads=2, q_heads=4, sequences=3, tokens=3 * tokens)
    one = one.but(workspace=torch.zeros(size, dtype=torch.uint8), sinks=torch.randn(4), softcap=20.0, window=60)
    other = one.but(**{name: one.arguments[name].clone() for name in ("pages", "fringe") if one.arguments[name] is not None})
    state = ops.prepare_attend_encode(*one.for_op("prepare_attend_encode"))
    assert torch.equal(one.arguments["pages"], other.arguments["pages"])
    for step in range(3):
        own = {name: torch.randn_like(one.arguments[name]) for name in ("query", "keys", "values")}
        now = other.but(lengths=other.arguments["lengths"] + step * tokens, **own)
        heads = now.in_heads()
        out = ops.attend_encode_prepared(heads["query"], heads["keys"], heads["values"], heads["lengths"], state)
        assert torch.equal(out.flatten(0, 1), now.attend_encode())
        for name in ("pages", "fringe"):
            assert one.arguments[name] is None or torch.equal(one.arguments[name], now.arguments[name])


def test_decode_is_zero_past_each_length_and_at_padding():
    paged = Paged(history=(70, 0, 5), starts=int32(3, 0, 0))
    keys, values = paged.but(max_tokens=80, dtype=torch.bfloat16).decode()
    assert keys.shape == (3, 2, 80, 64) and keys.dtype == torch.bfloat16
    for tensor in (keys, values):
        used = tensor.abs().sum((1, 3)) > 0
        positions = torch.arange(80)
        assert torch.equal(used, torch.stack([(positions >= 3) & (positions < 70), positions < 0, positions < 5]))


def test_the_fringe_returns_its_tokens_at_16_bits():
    paged = Paged(history=(70,), own=(1,), first=4, recent=8)
    keys, values = paged.decode()
    for decoded, given in ((keys, paged.history_keys), (values, paged.history_values)):
        error = (decoded[0] - given.transpose(0, 1)).norm(dim=-1) / given.transpose(0, 1).norm(dim=-1)
        held = torch.zeros(70, dtype=torch.bool)
        held[:4] = held[-8:] = True
        # fp16 rounds each rotated coordinate by 2^-11; the balance of 0.5 to 1.5 stretches by up to 3.
        assert error[:, held].max() <= 3 * 2.0**-11
        assert error[:, ~held].min() > 3 * 2.0**-11


def test_rotate_inverts_itself_and_keeps_norms():
    x = torch.randn(7, 3, 96)
    signs = torch.stack([ops.random_signs(96, head) for head in range(3)])
    base = ops.hadamard_base(96)
    rotated = ops.rotate(x, signs, base)
    bound = 2 * (3 + 12 + 2) * 2.0**-24 * float(x.norm(dim=-1).max())
    assert (ops.rotate(rotated, signs, base, inverse=True) - x).norm(dim=-1).max() <= bound
    assert (rotated.norm(dim=-1) - x.norm(dim=-1)).abs().max() <= bound
    assert ops.rotate(x.bfloat16(), signs, base).dtype == torch.bfloat16


def test_balance_has_a_mean_of_one_and_follows_the_keys():
    paged = Paged(history=(0,), own=(128,))
    paged.arguments["keys"][:, :, 5] *= 16
    balance = paged.balance()
    assert balance.shape == (2, 64) and balance.dtype == torch.float32
    assert (balance.mean(-1) - 1).abs().max() <= 64 * 2.0**-24
    assert (balance.argmax(-1) == 5).all()


def test_signs_are_of_one_and_follow_their_seed():
    signs = ops.random_signs(1000, 3)
    assert signs.dtype == torch.float32 and set(signs.tolist()) == {1.0, -1.0}
    assert torch.equal(signs, ops.random_signs(1000, 3))
    assert not torch.equal(signs, ops.random_signs(1000, 4))
    assert torch.equal(ops.random_signs(3, -1), ops.random_signs(1000, -1)[:3])


def test_the_base_matrix_is_orthogonal_and_one_where_no_base_is_needed():
    for head_dim in (32, 48, 80, 96, 128, 192, 512):
        base, size = ops.hadamard_base(head_dim), ops.hadamard_base_size(head_dim)
        assert base.shape == (size, size) and head_dim % size == 0
        # size products of entries of at most sqrt(2), each rounded to fp32.
        product = base.double() @ base.double().T - size * torch.eye(size, dtype=torch.float64)
        assert product.abs().max() <= size * 4 * 2.0**-24
    assert torch.equal(ops.hadamard_base(64), torch.ones(1, 1))


def test_torchs_thread_count_changes_no_bit():
    paged = Paged(history=(200, 33, 5), own=(5, 1, 2))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            pages = torch.zeros_like(paged.arguments["pages"])
            paged.but(pages=pages).encode()
            results.append((*paged.decode(), pages))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_whole_step_compiles_into_one_graph(backend):
    paged = Paged(first=4, recent=8)

    def step(query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        call = {**paged.arguments, "query": query * 2, "keys": keys, "values": values}
        call["pages"], call["fringe"] = call["pages"].clone(), call["fringe"].clone()
        arguments = {name: [call[a] for a in names] for name, names in ORDER.items()}
        out, _ = ops.attend(*arguments["attend"])
        ops.encode(*arguments["encode"])
        assert ops.page_bytes(64, 4, 4) == call["pages"].shape[-1]
        return out + 1, call["pages"]

    ORDER = {
        name: [argument.name for argument in getattr(torch.ops.turboquant, name).default._schema.arguments]
        for name in ("attend", "encode")
    }
    inputs = [paged.arguments[name] for name in ("query", "keys", "values")]
    expected = step(*inputs)
    compiled = torch.compile(step, backend=backend, fullgraph=True)(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(expected, compiled))
