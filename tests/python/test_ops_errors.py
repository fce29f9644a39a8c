# SPDX-License-Identifier: Apache-2.0
"""Bad input: an error that names the argument, what it is and what to pass, before anything is written."""

import re

import pytest
import torch
from paged import Paged, int32

from turboquant import ops
from turboquant._errors import translated
from turboquant._library import check_torch

ALL = ("attend", "encode", "decode")


def make(own=(1, 3, 2)) -> Paged:
    # Lengths 70, 0, 5; 2 pages a sequence; 2 KV heads, 4 query heads of 64; 6 tokens.
    return Paged(history=(70, 0, 5), own=own, first=4, recent=8)


# operators, argument, the bad one made of the good one, what the message says
BAD = [
    (("attend",), "query", lambda t: t[0], r"query has shape \[4, 64\]; pass \[tokens, q_heads, head_dim\]"),
    (("attend",), "query", lambda t: t.double(), r"query is float64; use float32, float16 or bfloat16"),
    (("attend",), "query", lambda t: t.repeat_interleave(2, -1)[..., ::2], r"query has a last stride of 2, not 1; pass query.contiguous\(\)"),
    (("attend",), "query", lambda t: t[:, :3].contiguous(), r"q_heads=3 is not a multiple of kv_heads=2"),
    (("attend", "encode"), "keys", lambda t: t[:, :1].contiguous(), r"keys has shape \[6, 1, 64\]; pass \[tokens=6, (kv_heads=2), head_dim=64\]"),
    (("attend", "encode"), "values", lambda t: t[:5], r"values has shape \[5, 2, 64\]; pass \[tokens=6, "),
    (("attend", "encode"), "values", lambda t: t.half(), r"values is float16, not float32; pass values.to\(torch.float32\)"),
    (("attend",), "values", lambda t: None, r"keys without values; pass both or neither"),
    (("attend",), "keys", lambda t: None, r"values without keys; pass both or neither"),
    (("attend", "encode"), "token_starts", lambda t: t.long(), r"token_starts is int64, not int32; pass token_starts.to\(torch.int32\)"),
    (("attend", "encode"), "token_starts", lambda t: t[:3], r"token_starts has shape \[3\]; pass \[sequences \+ 1=4\]"),
    (("attend", "encode"), "token_starts", lambda t: int32(0, 1, 4, 9), r"token_starts\[3\]=9 but the call has 6 tokens"),
    (("attend", "encode"), "token_starts", lambda t: int32(0, 5, 4, 6), r"token_starts\[2\]=4 is below the one before it, 5"),
    (("attend", "encode"), "token_starts", lambda t: int32(1, 2, 4, 6), r"token_starts\[0\]=1; the first is 0"),
    (ALL, "pages", lambda t: t[:, :, :-128].contiguous(), r"pages has shape \[6, 2, 4352\]; pass \[count, kv_heads, page_bytes=4480\]"),
    (ALL, "pages", lambda t: t.to(torch.int8), r"pages is int8, not uint8"),
    (ALL, "pages", lambda t: t.transpose(0, 1).contiguous().transpose(0, 1), r"pages of shape .* has strides .*, not contiguous ones; pass pages.contiguous\(\)"),
    (ALL, "page_table", lambda t: t[0], r"page_table has shape \[2\]; pass \[sequences, max_pages\]"),
    (ALL, "page_table", lambda t: t.float(), r"page_table is float32, not int32"),
    (ALL, "page_table", lambda t: torch.full_like(t, 6), r"page_table\[0\]\[0\]=6 is out of range; the pool has pages 0 to 5"),
    (ALL, "page_table", lambda t: torch.full_like(t, -1), r"page_table\[0\]\[0\]=-1 is out of range"),
    (ALL, "lengths", lambda t: t[:2], r"lengths has shape \[2\]; pass \[sequences=3\]"),
    (ALL, "lengths", lambda t: int32(70, -2, 5), r"lengths\[1\]=-2 is negative"),
    (ALL, "lengths", lambda t: int32(500, 0, 5), r"sequence 0 reaches position 50[01] but its page table holds 128"),
    (ALL, "starts", lambda t: int32(0, 0), r"starts has shape \[2\]; pass \[sequences=3\]"),
    (ALL, "starts", lambda t: int32(0, -1, 0), r"starts\[1\]=-1 is negative"),
    (ALL, "fringe", lambda t: t.float(), r"fringe is float32, not float16"),
    (ALL, "fringe", lambda t: t[:2], r"fringe has shape \[2, 2, 12, 2, 64\]; pass \[sequences=3, kv_heads=2, "),
    (ALL, "fringe", lambda t: None, r"fringe_first=4 without a fringe"),
    (ALL, "fringe_first", lambda n: 13, r"fringe_first=13 is not within the fringe's 12 slots"),
    (ALL, "fringe_first", lambda n: -1, r"fringe_first=-1 is not within"),
    (ALL, "recent_starts", lambda t: t.long(), r"recent_starts is int64, not int32"),
    (("attend", "decode"), "query_signs", lambda t: t[:1], r"query_signs has shape \[1, 64\]; pass \[kv_heads=2, head_dim=64\]"),
    (("encode",), "key_signs", lambda t: t.half(), r"key_signs is float16, not float32"),
    (("encode",), "key_metric", lambda t: torch.zeros(2, 64, 64), r"key_metric is float32, not int8"),
    (("encode",), "key_metric", lambda t: torch.zeros(2, 64, 32, dtype=torch.int8), r"key_metric has shape \[2, 64, 32\]; pass \[kv_heads=2, head_dim=64, head_dim=64\]"),
    (ALL, "value_signs", lambda t: t[:, :32].contiguous(), r"value_signs has shape \[2, 32\]"),
    (ALL, "base", lambda t: torch.ones(12, 12), r"base=12 does not belong to head_dim=64; use 1"),
    (ALL, "base", lambda t: torch.ones(12, 11), r"base has shape \[12, 11\]; pass \[m, m=12\]"),
    (ALL, "base", lambda t: torch.ones(12), r"base has shape \[12\]; pass \[m, m\]"),
    (("attend",), "sinks", lambda t: torch.zeros(2), r"sinks has shape \[2\]; pass \[q_heads=4\]"),
    (("attend",), "softcap", lambda n: -1.0, r"softcap=-1.0+ is negative"),
    (("attend",), "window", lambda n: -3, r"window=-3 is negative"),
    (("attend",), "window", lambda n: 2**40, r"window=1099511627776 does not fit into 32 bits"),
    (ALL, "k_bits", lambda n: 5, r"k_bits=5 is not a page width; use 2, 3 or 4"),
    (ALL, "v_bits", lambda n: 2**32 + 4, r"v_bits=4294967300 does not fit into 32 bits"),
    (("decode",), "head_dim", lambda n: 100, r"head_dim=100 is not a multiple of 16 from 32 to 512; the nearest is 96"),
    (("decode",), "max_tokens", lambda n: 60, r"lengths\[0\]=70 does not fit in max_tokens=60"),
    (("decode",), "max_tokens", lambda n: -1, r"max_tokens=-1 is negative"),
    (("decode",), "dtype", lambda n: torch.int32, r"dtype is int32; use float32, float16 or bfloat16"),
]  # fmt: skip
CASES = [(op, *bad) for operators, *bad in BAD for op in operators]
# attend_encode takes the call's own tokens in another shape, and the rest as the two do.
OWN = [
    ("query", lambda t: t[:, 0, 0], r"query has shape \[3, 64\]; pass \[sequences, q_heads, tokens, head_dim\]"),
    ("query", lambda t: t.double(), r"query is float64; use float32, float16 or bfloat16"),
    ("query", lambda t: t[:, :3], r"q_heads=3 is not a multiple of kv_heads=2"),
    ("query", lambda t: t[:2], r"token_starts\[3\]=6 but the call has 4 tokens"),
    ("query", lambda t: t.contiguous(), r"strides of 512 between sequences and 64 between tokens, .* pass query.transpose\(1, 2\).contiguous"),
    ("keys", lambda t: t[:, :1], r"keys has shape \[3, 1, 2, 64\]; pass \[sequences=3, kv_heads=2, tokens=2, head_dim=64\]"),
    ("keys", lambda t: t.repeat_interleave(2, -1)[..., ::2], r"keys has a last stride of 2, not 1"),
    ("values", lambda t: t[:, :, :1], r"values has shape \[3, 2, 1, 64\]; pass \[sequences=3, "),
    ("values", lambda t: t.half(), r"values is float16, not float32; pass values.to\(torch.float32\)"),
]
CASES += [
    ("attend_encode", argument, *bad)
    for operators, argument, *bad in BAD
    if operators != ("decode",) and argument not in ("query", "keys", "values")
]


@pytest.mark.parametrize("argument, spoil, message", OWN)
def test_tokens_as_models_have_them_are_checked(argument, spoil, message):
    good = make((2, 2, 2))
    before = {name: good.arguments[name].clone() for name in ("pages", "fringe")}
    with pytest.raises(ValueError, match=message):
        good.but(**{argument: spoil(good.in_heads()[argument])}).attend_encode()
    for name, tensor in before.items():
        assert torch.equal(good.arguments[name], tensor)


@pytest.mark.parametrize("op, argument, spoil, message", CASES, ids=[f"{c[0]}-{c[1]}-{i}" for i, c in enumerate(CASES)])
def test_bad_arguments_are_named_before_anything_is_written(op, argument, spoil, message):
    good = make((2, 2, 2) if op == "attend_encode" else (1, 3, 2))
    bad = good.but(**{argument: spoil(good.arguments[argument])})
    before = {name: good.arguments[name].clone() for name in ("pages", "fringe")}
    with pytest.raises(ValueError, match=message):
        getattr(bad, op)()
    for name, tensor in before.items():
        assert torch.equal(good.arguments[name], tensor)


def test_head_dims_without_pages_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"head_dim=72 is not a multiple of 16 from 32 to 512; the nearest is 80"):
        ops.page_bytes(72, 4, 4)


def test_rotations_that_do_not_exist_are_unsupported():
    for op in (ops.hadamard_base, ops.hadamard_base_size):
        with pytest.raises(NotImplementedError, match="head_dim=2048 has no Hadamard rotation; use at most 1024"):
            op(2048)
        with pytest.raises(ValueError, match="head_dim=0 is not positive"):
            op(0)


def test_rotate_names_what_is_wrong():
    x, signs = torch.randn(5, 2, 64), torch.ones(2, 64)
    with pytest.raises(ValueError, match=r"x has shape \[5, 64\]; pass \[tokens, heads, head_dim\]"):
        ops.rotate(x[:, 0], signs)
    with pytest.raises(ValueError, match=r"signs has shape \[1, 64\]; pass \[heads=2, head_dim=64\]"):
        ops.rotate(x, signs[:1])
    with pytest.raises(ValueError, match="base=1 does not belong to head_dim=96; use 12"):
        ops.rotate(torch.randn(5, 2, 96), torch.ones(2, 96))


def test_balance_names_what_is_wrong():
    query, keys = torch.randn(5, 4, 64), torch.randn(5, 2, 64)
    with pytest.raises(ValueError, match=r"keys has shape \[4, 2, 64\]; pass \[tokens=5, kv_heads, head_dim=64\]"):
        ops.balance(query, keys[:4], int32(0, 5))
    with pytest.raises(ValueError, match=r"token_starts\[1\]=4 but the call has 5 tokens"):
        ops.balance(query, keys, int32(0, 4))
    with pytest.raises(ValueError, match=r"token_starts has shape \[0\]"):
        ops.balance(query, keys, int32())
    with pytest.raises(ValueError, match="q_heads=3 is not a multiple of kv_heads=2"):
        ops.balance(query[:, :3], keys, int32(0, 5))


def test_a_negative_number_of_signs_is_refused():
    with pytest.raises(ValueError, match="dim=-1 is negative"):
        ops.random_signs(-1, 0)


@pytest.mark.parametrize("name", ["pages", "lengths", "query_signs"])
def test_a_tensor_on_another_device_is_named(name):
    paged = make()
    with pytest.raises(ValueError, match=rf"{name} is on meta but query on cpu; pass {name}.to\('cpu'\)"):
        paged.but(**{name: paged.arguments[name].to("meta")}).attend()


def test_the_raw_operators_raise_runtime_errors_with_the_same_words():
    with pytest.raises(RuntimeError, match=re.escape("turboquant: invalid argument: k_bits=9 is not a page width")):
        torch.ops.turboquant.page_bytes(64, 9, 4)


def test_errors_of_torch_itself_pass_through_unchanged():
    error = RuntimeError("something of torch")
    assert translated(error) is error
    with pytest.raises(RuntimeError, match="expected at most|missing value|Expected a value"):
        ops.page_bytes("64", 4, 4)


def test_each_code_of_an_error_has_its_class():
    for kind, expected in (("invalid argument", ValueError), ("unsupported", NotImplementedError), ("device", RuntimeError)):
        error = translated(RuntimeError(f"turboquant: {kind}: why"))
        assert type(error) is expected and str(error) == "why"


def test_an_old_torch_is_named_with_the_remedy():
    with pytest.raises(ImportError, match=re.escape("torch 2.10.1+cpu is too old for turboquant; pip install 'torch>=2.11'")):
        check_torch("2.10.1+cpu")
    for version in ("2.11.0", "2.11.0+cu130", "2.12.0a0+git1234", "3.0.0"):
        check_torch(version)


PREPARED = [
    (0, lambda t: t[:2], r"query has shape \[2, 4, 2, 64\]; pass \[sequences=3, q_heads=4, tokens=2, head_dim=64\]"),
    (0, lambda t: t[:, :, :1], r"query has shape \[3, 4, 1, 64\]; pass \[sequences=3, "),
    (0, lambda t: t.half(), r"query is float16, not float32; pass query.to\(torch.float32\)"),
    (1, lambda t: t[:, :1], r"keys has shape \[3, 1, 2, 64\]; pass \[sequences=3, kv_heads=2, tokens=2, head_dim=64\]"),
    (2, lambda t: t.half(), r"values is float16, not float32; pass values.to\(torch.float32\)"),
    (3, lambda t: t.long(), r"lengths is int64, not int32"),
    (3, lambda t: t[:2], r"lengths has shape \[2\]; pass \[sequences=3\]"),
    (3, lambda t: t + 500, r"sequence 0 reaches position 57[02] but its page table holds 128"),
    (4, lambda t: t[:-1], r"state has shape \[1023\]; pass \[bytes=1024\]"),
    (4, lambda t: torch.zeros_like(t), r"state holds something else; pass what prepare_attend_encode returned"),
]


@pytest.mark.parametrize(("place", "spoil", "message"), PREPARED)
def test_a_prepared_step_checks_what_it_is_given(place, spoil, message):
    good = make((2, 2, 2))
    size = ops.attend_workspace_bytes(64, 4, 4, kv_heads=2, q_heads=4, sequences=3, tokens=6)
    arguments = good.but(workspace=torch.zeros(size, dtype=torch.uint8)).for_op("prepare_attend_encode")
    heads = good.in_heads()
    given = [heads["query"], heads["keys"], heads["values"], heads["lengths"], ops.prepare_attend_encode(*arguments)]
    given[place] = spoil(given[place])
    before = good.arguments["pages"].clone()
    with pytest.raises(ValueError, match=message):
        ops.attend_encode_prepared(*given)
    assert torch.equal(good.arguments["pages"], before)


def test_a_step_is_prepared_with_a_workspace_that_is_kept():
    with pytest.raises(ValueError, match="workspace is None; a prepared step takes one that is kept"):
        ops.prepare_attend_encode(*make((2, 2, 2)).for_op("prepare_attend_encode"))
