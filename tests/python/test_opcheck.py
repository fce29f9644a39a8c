# SPDX-License-Identifier: Apache-2.0
"""Every operator is what torch asks of one: schema, fake kernel, traceable by torch.compile."""

import re
from pathlib import Path

import pytest
import torch
from paged import Paged, int32

from turboquant import ops

VARIANTS = {
    "plain": Paged(),
    "with fringe, padding, base matrix": Paged(head_dim=48, first=4, recent=8, starts=int32(3, 0, 5)),
    "3 and 2 bits, bfloat16": Paged(k_bits=3, v_bits=2, dtype=torch.bfloat16),
    "a metric": Paged().but(key_metric=torch.ones(2, 64, 64, dtype=torch.int8)),
    "history only, sinks": Paged(own=(1, 1, 1)).but(keys=None, values=None, sinks=torch.randn(4)),
}


@pytest.fixture(params=list(VARIANTS))
def paged(request) -> Paged:
    return VARIANTS[request.param]


def opcheck(name: str, arguments: tuple) -> None:
    # A copy of each tensor: opcheck runs operators that write.
    copies = tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in arguments)
    torch.library.opcheck(getattr(torch.ops.turboquant, name).default, copies)


def test_attend_passes_opcheck(paged):
    opcheck("attend", paged.for_op("attend"))


def test_attend_with_a_workspace_passes_opcheck():
    paged = Paged()
    size = ops.attend_workspace_bytes(64, 4, 4, kv_heads=2, q_heads=4, sequences=3, tokens=6)
    opcheck("attend", paged.but(workspace=torch.zeros(size, dtype=torch.uint8), settled=True).for_op("attend"))


@pytest.mark.parametrize(
    "variant", [dict(), dict(head_dim=48, first=4, recent=8, starts=int32(3, 0, 5)), dict(k_bits=3, v_bits=2, dtype=torch.bfloat16)]
)
@pytest.mark.parametrize("own", [(1, 1, 1), (3, 3, 3)])
def test_attend_encode_passes_opcheck(variant, own):
    opcheck("attend_encode", Paged(own=own, **variant).but(sinks=torch.randn(4)).for_op("attend_encode"))


def test_a_prepared_attend_encode_passes_opcheck():
    paged = Paged(own=(1, 1, 1), k_bits=3, v_bits=2)
    size = ops.attend_workspace_bytes(64, 3, 2, kv_heads=2, q_heads=4, sequences=3, tokens=3)
    arguments = paged.but(workspace=torch.zeros(size, dtype=torch.uint8)).for_op("attend_encode")
    # opcheck's test of AOT dispatch compares results, and this one is made of addresses.
    prepare = torch.ops.turboquant.prepare_attend_encode.default
    torch.library.opcheck(prepare, arguments, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))
    opcheck("attend_encode_prepared", (*arguments[:3], paged.arguments["lengths"], ops.prepare_attend_encode(*arguments)))


def test_encode_passes_opcheck(paged):
    if paged.arguments["keys"] is None:
        paged = Paged()
    opcheck("encode", paged.for_op("encode"))


def test_decode_passes_opcheck(paged):
    opcheck("decode", paged.but(max_tokens=100).for_op("decode"))


def test_rotate_passes_opcheck():
    for inverse in (False, True):
        opcheck("rotate", (torch.randn(5, 2, 64), torch.randn(2, 64), None, inverse))


def test_balance_passes_opcheck():
    paged = Paged()
    opcheck("balance", paged.but(starts=int32(0, 1, 0)).for_op("balance"))


def test_key_metric_passes_opcheck():
    moment, metric = torch.zeros(2, 64, 64, dtype=torch.int32), torch.zeros(2, 64, 64, dtype=torch.int8)
    for starts, made in ((None, None), (int32(0, 2), metric)):
        opcheck("key_metric", (torch.randn(2, 4, 5, 64), starts, torch.ones(2, 64), None, 2, starts is None, moment, made))


def test_operators_without_tensors_pass_opcheck():
    opcheck("page_bytes", (64, 4, 3))
    opcheck("attend_workspace_bytes", (64, 4, 3, 2, 4, 3, 6))
    opcheck("random_signs", (64, 7))
    opcheck("hadamard_base", (96,))
    opcheck("hadamard_base_size", (96,))
    # opcheck's test of AOT dispatch compares results with assert_close, which has no rule for str.
    version = torch.ops.turboquant.version.default
    torch.library.opcheck(version, (), test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


def test_quantizer_operators_pass_opcheck():
    for haar in (False, True):
        dim = 36 if haar else 96
        x, queries = torch.randn(5, dim), torch.randn(3, dim)
        mse = ops.mse_quantize(x, 3, 1, haar, True)
        prod = ops.prod_quantize(x, 3, 1, haar)
        opcheck("mse_quantize", (x, 3, 1, haar, True))
        opcheck("mse_dequantize", (*mse, dim, 3, 1, haar, True))
        opcheck("prod_quantize", (x, 3, 1, haar))
        opcheck("prod_dequantize", (*prod, dim, 3, 1, haar))
        opcheck("prod_inner_product", (queries, *prod, 3, 1, haar))
    opcheck("lloyd_max", (64, 3))


def test_every_operator_is_checked_here():
    source = Path(__file__).read_text()
    every = torch._C._dispatch_get_all_op_names()
    names = {name.removeprefix("turboquant::") for name in every if name.startswith("turboquant::")}
    # The CPU's library names it for the CUDA one, which alone implements it.
    names.remove("cuda_attend_workspace_bytes")
    assert names == {*re.findall(r'opcheck\("(\w+)"', source), "version", "prepare_attend_encode"}
