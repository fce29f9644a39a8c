# SPDX-License-Identifier: Apache-2.0
"""The operator key_metric: a damped second moment of the directions that queries look in (docs/adr/0008)."""

import pytest
import torch
from turboquant import ops
from turboquant.carrier import rows_of
from turboquant.metric import QUERY_TOKENS, key_metric

pytestmark = pytest.mark.usefixtures("one_thread")
ADDED = 4.5 * 45**2  # src/kernels/metric_rules.h


def signs_of(heads, dim):
    return torch.stack([ops.random_signs(dim, i) for i in range(heads)]) * torch.linspace(0.5, 2.0, dim)


def base_of(dim):
    return ops.hadamard_base(dim) if ops.hadamard_base_size(dim) > 1 else None


def moment_of(query, signs, base=None, starts=None, step=1):
    heads, dim = signs.shape
    moment = torch.full((heads, dim, dim), -7, dtype=torch.int32)
    ops.key_metric(query, starts, signs, base, step, True, moment)
    return moment


@pytest.mark.parametrize("dim", [32, 64, 80, 128])
def test_a_metric_is_the_damped_second_moment_of_rotated_directions(dim):
    torch.manual_seed(0)
    query, signs = torch.randn(2, 6, 150, dim) + torch.randn(6, 1, dim), signs_of(2, dim)
    query *= torch.rand(2, 6, 150, 1) * 100  # sizes do not count
    found = key_metric(query, None, signs, base_of(dim))
    rotated = ops.rotate(rows_of(query), signs.repeat_interleave(3, 0), base_of(dim)).double()
    for head in range(2):
        x = rotated[:, 3 * head : 3 * head + 3].flatten(0, 1)
        x = x * 127 / x.abs().amax(-1, keepdim=True)
        moment = x.T @ x
        damped = moment + (moment.trace() / (4 * dim) + ADDED * dim) * torch.eye(dim)
        expected = damped * (127 / damped.diagonal().max())
        # Levels are off by half at most, so a sum of n products u_e u_f by the sums of |u_e| / 2 and |u_f| / 2 and n / 4; and a sum
        # of n |u_e| is at most the square root of n times the sum of their squares.
        n, largest = len(x), moment.diagonal().max()
        bound = 127 * ((n * largest).sqrt() + n / 4) / damped.diagonal().max()
        assert (found[head].double() - expected).abs().max() <= 0.5 + 2 * bound
        assert (found[head].double() - expected).abs().mean() <= 0.3  # rounding errors do not add up
    assert found.dtype == torch.int8 and torch.equal(found, found.mT)
    assert (found.diagonal(0, 1, 2).amax(-1) == 127).all()


def test_one_direction_is_told_from_another():
    """Queries along a rotated axis: its moment is 127 squared a query where levels stop, and nothing else."""
    dim = 64
    axis = ops.rotate(torch.eye(dim)[5].reshape(1, 1, dim), torch.ones(1, dim), None, True).reshape(1, 1, 1, dim)
    moment = moment_of(axis.repeat(1, 1, 7, 1), torch.ones(1, dim))
    assert moment[0, 5, 5] == 7 * 127**2 and moment.triu().count_nonzero() == 1
    metric = torch.empty(1, dim, dim, dtype=torch.int8)
    ops.key_metric(axis[:, :, :0], None, torch.ones(1, dim), None, 1, False, moment, metric)
    added = 7 * 127**2 // (4 * dim) + int(ADDED * dim)
    expected = torch.eye(dim) * added
    expected[5, 5] += 7 * 127**2
    assert torch.equal(metric[0].float(), (expected * (127 / expected.max())).round())


def test_a_metric_does_not_depend_on_the_order_of_queries_nor_on_padding_zeros_or_nan():
    torch.manual_seed(1)
    query, signs = torch.randn(1, 4, 90, 64), signs_of(2, 64)
    found = key_metric(query, None, signs, None)
    assert torch.equal(found, key_metric(query[:, :, torch.randperm(90)], None, signs, None))
    padded = torch.cat([torch.full((1, 4, 30, 64), 1e4), query], 2)
    assert torch.equal(found, key_metric(padded, torch.tensor([30], dtype=torch.int32), signs, None))
    for spoilt in (torch.nan, torch.inf, 3e38, 0.0):
        padded[:, :, :30] = spoilt
        assert torch.equal(found, key_metric(padded, None, signs, None))
    assert not key_metric(torch.zeros(1, 4, 9, 64), None, signs, None).any()


def test_a_moment_grows_call_by_call():
    torch.manual_seed(2)
    query, signs = torch.randn(3, 4, 100, 96), signs_of(2, 96)
    whole = moment_of(query, signs, base_of(96))
    grown, metric = torch.ones_like(whole), torch.empty(2, 96, 96, dtype=torch.int8)
    for i, part in enumerate(query.split([1, 60, 39], 2)):
        ops.key_metric(part, None, signs, base_of(96), 1, i == 0, grown, metric)
    assert torch.equal(grown.triu(), whole.triu())
    assert torch.equal(metric, key_metric(query, None, signs, base_of(96)))


def test_sampled_rows_are_those_that_the_step_ends_at():
    torch.manual_seed(3)
    query, signs = torch.randn(2, 4, 35, 32), signs_of(2, 32)
    rows = query.transpose(1, 2).reshape(1, 70, 4, 32)[:, 3::4].transpose(1, 2)
    assert torch.equal(moment_of(query, signs, step=4).triu(), moment_of(rows, signs).triu())
    assert not moment_of(query, signs, step=71).triu().any()
    long = torch.randn(1, 2, 3 * QUERY_TOKENS, 32)
    assert torch.equal(key_metric(long, None, signs_of(1, 32), None), key_metric(long[:, :, 2::3], None, signs_of(1, 32), None))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_queries_may_have_any_type_and_strides_but_the_last(dtype):
    torch.manual_seed(4)
    query, signs = torch.randn(2, 4, 20, 48).to(dtype), signs_of(2, 48)
    expected = moment_of(query.float(), signs, base_of(48))
    for there in (query, query.transpose(1, 2).contiguous().transpose(1, 2), query.transpose(0, 2).contiguous().transpose(0, 2)):
        assert torch.equal(moment_of(there, signs, base_of(48)).triu(), expected.triu())


GOOD = dict(
    query=torch.ones(2, 4, 5, 64), starts=torch.zeros(2, dtype=torch.int32), query_signs=torch.ones(2, 64), base=None, step=1, begins=True,
    moment=torch.ones(2, 64, 64, dtype=torch.int32), metric=torch.zeros(2, 64, 64, dtype=torch.int8),
)  # fmt: skip
BAD = [
    ("query", lambda t: t[0], r"query has shape \[4, 5, 64\]; pass \[sequences, q_heads, tokens, head_dim\]"),
    ("query", lambda t: t.double(), r"query is float64; use float32, float16 or bfloat16"),
    ("query", lambda t: t[:, :3], r"q_heads=3 is not a multiple of kv_heads=2"),
    ("query", lambda t: t.repeat_interleave(2, -1)[..., ::2], r"query has a last stride of 2, not 1"),
    ("query", lambda t: t[:1, :1, :1].expand(1, 2 * 4099, 32, 64), r"32 tokens with step=1 are 131168 queries of a KV head; .* leaves 131072 at most"),
    ("starts", lambda t: t[:1], r"starts has shape \[1\]; pass \[sequences=2\]"),
    ("starts", lambda t: t - 1, r"starts\[0\]=-1 is negative"),
    ("query_signs", lambda t: t[:1], r"query_signs has shape \[1, 64\]; pass \[kv_heads=2, head_dim=64\]"),
    ("base", lambda t: torch.ones(12, 12), r"base=12 does not belong to head_dim=64; use 1"),
    ("step", lambda n: 0, r"step=0 is not positive; 1 takes every token"),
    ("moment", lambda t: t.long(), r"moment is int64, not int32"),
    ("moment", lambda t: t[:, :, :32], r"moment has shape \[2, 64, 32\]; pass \[kv_heads, head_dim=64, head_dim=64\]"),
    ("metric", lambda t: t.int(), r"metric is int32, not int8"),
    ("metric", lambda t: t[:1], r"metric has shape \[1, 64, 64\]; pass \[kv_heads=2, head_dim=64, head_dim=64\]"),
]  # fmt: skip


@pytest.mark.parametrize(("argument", "spoil", "message"), BAD, ids=[f"{case[0]}-{i}" for i, case in enumerate(BAD)])
def test_bad_arguments_are_named_before_anything_is_written(argument, spoil, message):
    arguments = GOOD | {argument: spoil(GOOD[argument])}
    if argument == "query" and "131168" in message:
        arguments["starts"] = None
    with pytest.raises(ValueError, match=message):
        ops.key_metric(*arguments.values())
    assert GOOD["moment"].all()


def test_head_dims_without_pages_are_refused():
    with pytest.raises(ValueError, match="head_dim=40 is not a multiple of 16 from 32 to 512"):
        moment_of(torch.ones(1, 1, 1, 40), torch.ones(1, 40))
