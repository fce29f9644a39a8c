# SPDX-License-Identifier: Apache-2.0
"""The CUDA operators where there is no GPU: they load, and where they are missing, an operator says so."""

import subprocess
import sys

import pytest
import torch
from turboquant import _library
from turboquant._library import CUDA_LIBRARY, CUDA_OPERATORS

# Calls an operator's CUDA kernel with tensors that only claim to be there.
REDISPATCH = """
import torch, turboquant
from turboquant import _library
cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
def rotate():
    torch.ops.turboquant.rotate.default.redispatch(cuda, torch.ones(1, 1, 64), torch.ones(1, 64), None, False)
"""


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-P", "-c", program], check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU: the operators are loaded already")
@pytest.mark.skipif(not CUDA_LIBRARY.exists(), reason="this machine has no nvcc: the wheel is without CUDA")
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is without CUDA")
def test_the_library_loads_without_a_gpu_and_registers_every_operator():
    program = (
        REDISPATCH
        + """
_library.load_cuda()
for op in _library.CUDA_OPERATORS:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"turboquant::{op}", "CUDA"), op
try:
    rotate()
except RuntimeError as error:
    print(error)
"""
    )
    assert "turboquant: invalid argument: no tensor is on a device of this operator" in run(program)


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("quick", [True, False])
def test_kernels_that_were_only_compiled_to_see_that_they_do_are_refused_on_a_gpu(monkeypatch, tmp_path, quick, gpu):
    library = tmp_path / CUDA_LIBRARY.name
    library.touch()
    if quick:
        library.with_suffix(".quick").touch()
    loaded, refused = [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    monkeypatch.setattr(_library, "refuse_cuda", refused.append)
    _library.load_cuda(library)
    assert (len(refused), len(loaded)) == ((1, 0) if quick and gpu else (0, 1))
    assert all("TQ_CUDA_QUICK" in reason for reason in refused)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU: the operators are loaded already")
def test_an_operator_without_cuda_kernels_names_the_remedy():
    program = (
        REDISPATCH
        + """
_library.load_cuda(_library.CPU_LIBRARY.with_name("nothing.so"))
try:
    rotate()
except NotImplementedError as error:
    print(error)
"""
    )
    said = run(program)
    assert said.startswith("rotate on CUDA: this turboquant was built without CUDA; build the wheel on a machine with")


def test_the_operators_that_run_on_cuda_are_the_verbs_and_their_pair():
    pair = {"attend_encode", "prepare_attend_encode", "attend_encode_prepared"}
    assert set(CUDA_OPERATORS) == {"rotate", "balance", "encode", "decode", "attend"} | pair
