# SPDX-License-Identifier: Apache-2.0
"""The operators on CUDA tensors do what they do on the CPU: the same bytes, close outputs, the same errors."""

import pytest
import torch
from moved import to_cuda
from paged import Paged, int32

from turboquant import ops

UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
VARIANTS = {
    "plain": dict(),
    "fringe, padding, base matrix": dict(head_dim=80, first=4, recent=8, starts=int32(3, 0, 5)),
    "3 and 2 bits, bfloat16": dict(k_bits=3, v_bits=2, dtype=torch.bfloat16, head_dim=128, first=4, recent=28),
    "pages opened by a token": dict(history=(64, 128, 5), own=(1, 1, 1), head_dim=128),
    "the same, 3 bits, narrow planes": dict(history=(64, 128, 63), own=(1, 1, 1), head_dim=96, k_bits=3),
    "the same, 3 bits": dict(history=(128, 64, 0), own=(1, 1, 1), head_dim=192, k_bits=3, v_bits=3),
    "the same, 2 bits": dict(history=(64, 192, 64), own=(1, 1, 1), head_dim=64, k_bits=2),
    "float16, many queries": dict(dtype=torch.float16, history=(200, 0, 5), own=(40, 3, 1), group=4),
}


@pytest.fixture(params=list(VARIANTS))
def paged(request) -> Paged:
    return Paged(**VARIANTS[request.param])


def test_encode_writes_the_bytes_of_the_cpu(paged):
    there = to_cuda(paged)
    there.encode()
    paged.encode()
    for name in ("pages", "fringe"):
        if paged.arguments[name] is not None:
            assert torch.equal(there.arguments[name].cpu(), paged.arguments[name])


def test_decode_agrees_with_the_cpu_and_is_zero_past_each_length(paged):
    for dtype, unit in UNIT.items():
        call = paged.but(max_tokens=paged.arguments["max_tokens"] + 3, dtype=dtype)
        for got, expected in zip(to_cuda(call).decode(), call.decode()):
            assert got.is_cuda and got.dtype == dtype
            # Both are within fp32's error of a rotation of the exact value; then each is rounded to the dtype.
            bound = (2 * 180 * 2.0**-24 + 2 * unit) * float(expected.float().norm(dim=-1).max()) * 2
            assert (got.cpu().float() - expected.float()).abs().max() <= bound
            assert torch.equal(got.cpu() == 0, expected == 0)


def test_attend_agrees_with_the_cpu(paged):
    there = to_cuda(paged)
    (out, lse), (expected, expected_lse) = there.attend(), paged.attend()
    assert out.is_cuda and out.dtype == expected.dtype and out.shape == expected.shape
    values = max(float(paged.arguments["values"].float().abs().max()), float(paged.decode()[1].abs().max()))
    # tests/gpu/attend_bound.h: weights are rounded to 16 bits of a tile's largest, scores shift by about 1e-3.
    bound = (64 * 2 / 65278 + 4e-3 + 3 * UNIT[paged.dtype]) * values
    assert (out.cpu().float() - expected.float()).abs().max() <= bound
    seen = expected_lse.isfinite()
    assert torch.equal(lse.cpu().isfinite(), seen)
    assert (lse.cpu() - expected_lse)[seen].abs().max() <= 2e-3


def test_rotate_and_balance_give_the_bits_of_the_cpu(paged):
    a = paged.arguments
    for inverse in (False, True):
        expected = ops.rotate(a["keys"], a["value_signs"], a["base"], inverse)
        b = to_cuda(paged).arguments
        assert torch.equal(ops.rotate(b["keys"], b["value_signs"], b["base"], inverse).cpu(), expected)
    assert torch.equal(to_cuda(paged).balance().cpu(), paged.balance())


@pytest.mark.parametrize("own", [(1, 1, 1), (4, 4, 4), (70, 70, 70)])
@pytest.mark.parametrize("variant", [name for name in VARIANTS if "the same" not in name])
def test_attend_encode_is_attend_and_then_encode_bit_for_bit(variant, own):
    paged = Paged(**(VARIANTS[variant] | dict(own=own)))
    apart, together = to_cuda(paged), to_cuda(paged)
    expected, _ = apart.attend()
    apart.encode()
    assert torch.equal(together.attend_encode(), expected)
    for name in ("pages", "fringe"):
        if apart.arguments[name] is not None:
            assert torch.equal(together.arguments[name], apart.arguments[name])


@pytest.mark.parametrize("name", ["rotate", "balance", "encode", "decode", "attend", "attend_encode"])
def test_operators_pass_opcheck_on_cuda(name):
    paged = to_cuda(Paged(first=4, recent=8, own=(2, 2, 2)))
    if name == "rotate":
        arguments = (paged.arguments["keys"], paged.arguments["value_signs"], None, False)
    else:
        arguments = paged.but(starts=None).for_op(name)
    # A copy of each tensor: opcheck runs operators that write.
    copies = tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in arguments)
    torch.library.opcheck(getattr(torch.ops.turboquant, name).default, copies)


@pytest.mark.parametrize("dtype", list(UNIT))
@pytest.mark.parametrize("own", [(1, 1, 1), (40, 3, 0)])
def test_rows_may_have_any_strides_and_alignment_but_the_last(dtype, own):
    paged = to_cuda(Paged(dtype=dtype, own=own, first=4, recent=8))
    loose = {}
    for name in ("query", "keys", "values"):
        tight = paged.arguments[name]
        tokens, heads, head_dim = tight.shape
        # Heads are an odd number of elements apart, and the first begins at an odd one.
        room = torch.empty(tokens * (heads * (head_dim + 1) + 2) + 1, dtype=dtype, device="cuda")
        strides = (heads * (head_dim + 1) + 2, head_dim + 1, 1)
        loose[name] = room[1:].as_strided(tight.shape, strides)
        loose[name].copy_(tight)
    # Rows that vectors cannot be loaded from may take another kernel: as far apart as two roundings of each.
    bound = 2 * (64 * 2 / 65278 + 4e-3 + 3 * UNIT[dtype])
    for a, b in zip(paged.attend(), paged.but(**loose).attend()):
        assert (a.float() - b.float()).abs().max() <= bound * float(paged.arguments["values"].float().abs().max())
    pages = [paged.arguments["pages"].clone() for _ in range(2)]
    fringes = [paged.arguments["fringe"].clone() for _ in range(2)]
    paged.but(pages=pages[0], fringe=fringes[0]).encode()
    paged.but(pages=pages[1], fringe=fringes[1], **loose).encode()
    assert torch.equal(*pages) and torch.equal(*fringes)
    assert torch.equal(paged.balance(), paged.but(**loose).balance())
    signs = paged.arguments["value_signs"]
    assert torch.equal(ops.rotate(paged.arguments["keys"], signs), ops.rotate(loose["keys"], signs))


def test_a_workspace_serves_call_after_call():
    paged = to_cuda(Paged(history=(700, 3, 90), own=(1, 1, 1), head_dim=128))
    size = ops.attend_workspace_bytes(128, 4, 4, kv_heads=2, q_heads=4, sequences=3, tokens=3, device="cuda")
    call = paged.but(workspace=torch.zeros(size, dtype=torch.uint8, device="cuda"))
    expected = paged.attend()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(call.attend(), expected))
    if size > 0:
        with pytest.raises(ValueError, match="attend_workspace_bytes"):
            paged.but(workspace=torch.zeros(size - 1, dtype=torch.uint8, device="cuda")).attend()


@pytest.mark.parametrize("name", ["pages", "lengths", "query_signs", "workspace"])
def test_a_tensor_elsewhere_is_named(name):
    paged = to_cuda(Paged()).but(workspace=torch.zeros(1, dtype=torch.uint8, device="cuda"))
    with pytest.raises(ValueError, match=rf"{name} is on cpu but query on cuda:0; pass {name}.to\('cuda:0'\)"):
        paged.but(**{name: paged.arguments[name].cpu()}).attend()


def test_a_query_elsewhere_is_named():
    paged = to_cuda(Paged())
    with pytest.raises(ValueError, match=r"query is on cpu but keys on cuda:0; pass query.to\('cuda:0'\)"):
        paged.but(query=paged.arguments["query"].cpu()).attend()


def test_calls_run_on_the_current_stream_and_wait_for_nothing():
    paged = to_cuda(Paged(history=(200, 3), own=(1, 1)))
    expected = paged.attend()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(int(2e8))  # about a tenth of a second
        late = torch.zeros_like(paged.arguments["query"])
        late.copy_(paged.arguments["query"])
        out, lse = paged.but(query=late).attend()
        assert not stream.query(), "attend waited"
    stream.synchronize()
    assert torch.equal(out, expected[0]) and torch.equal(lse, expected[1])


def test_a_graph_of_attend_and_encode_serves_later_steps():
    cpu = Paged(history=(70, 0, 5), own=(1, 1, 1), first=4, recent=8)
    cpu.arguments["pages"] = torch.zeros(12, 2, cpu.arguments["pages"].shape[2], dtype=torch.uint8)
    cpu.arguments["page_table"] = torch.arange(12, dtype=torch.int32).reshape(3, 4)
    cpu.arguments["fringe"].zero_()
    cpu._encode_history()
    there = to_cuda(cpu)
    size = ops.attend_workspace_bytes(64, 4, 4, kv_heads=2, q_heads=4, sequences=3, tokens=3, device="cuda")
    there.arguments |= dict(workspace=torch.zeros(size, dtype=torch.uint8, device="cuda"), settled=True)
    start = {name: there.arguments[name].clone() for name in ("pages", "fringe")}

    def step():
        out = there.but(settled=False).attend()
        there.encode()
        return out

    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        step()
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, _ = step()
    for name, tensor in start.items():
        there.arguments[name].copy_(tensor)
    generator = torch.Generator().manual_seed(5)
    for _ in range(100):
        for name in ("query", "keys", "values"):
            cpu.arguments[name] = torch.randn(cpu.arguments[name].shape, generator=generator)
            there.arguments[name].copy_(cpu.arguments[name])
        there.arguments["lengths"].copy_(cpu.arguments["lengths"])
        expected, _ = cpu.attend()
        cpu.encode()
        graph.replay()
        assert (out.cpu() - expected).abs().max() <= 2e-2
        assert torch.equal(there.arguments["pages"].cpu(), cpu.arguments["pages"])
        cpu.arguments["lengths"] = cpu.arguments["lengths"] + 1


def test_a_call_without_tokens_or_sequences_is_empty_and_allowed():
    for paged in (Paged(history=(10,), own=(0,)), Paged(history=(), own=())):
        there = to_cuda(paged)
        out, lse = there.attend()
        assert out.shape == (0, 4, 64) and lse.shape == (0, 4)
        there.encode()
        there.decode()
