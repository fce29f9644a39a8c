# SPDX-License-Identifier: Apache-2.0
"""Loads the operators (torch.ops.turboquant) from the shared libraries beside this file."""

import re
from pathlib import Path
from typing import Any, NoReturn

import torch

CPU_LIBRARY = Path(__file__).with_name("libtq_torch_cpu.so")  # every schema, and the CPU's kernels
CUDA_LIBRARY = Path(__file__).with_name("libtq_torch_cuda.so")  # only where it was built with CUDA
MINIMUM_TORCH = (2, 11)
CUDA_OPERATORS = (
    "attend", "attend_encode", "attend_encode_prepared", "balance", "decode", "encode", "prepare_attend_encode", "rotate",
)  # fmt: skip

# Registrations from Python live as long as this.
_missing = torch.library.Library("turboquant", "FRAGMENT")


def check_torch(version: str) -> None:
    """Raises ImportError where torch is older than the stable ABI that the library is built for."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found and tuple(map(int, found.groups())) < MINIMUM_TORCH:
        needed = ".".join(map(str, MINIMUM_TORCH))
        raise ImportError(f"torch {version} is too old for turboquant; pip install 'torch>={needed}'")


def load(library: Path = CPU_LIBRARY) -> None:
    """Registers torch.ops.turboquant. Once: a second library of the same operators is an error of torch."""
    check_torch(torch.__version__)
    if not library.exists():
        raise ImportError(
            f"{library} is missing: this is the source folder, not the built package; "
            "'make package' builds it and installs it into .venv"
        )
    torch.ops.load_library(str(library))


def load_cuda(library: Path = CUDA_LIBRARY) -> None:
    """Registers the operators' CUDA kernels. Without them everything on the CPU works, and an operator that
    is called with CUDA tensors says why it does not."""
    if not library.exists():
        refuse_cuda("this turboquant was built without CUDA")
        return
    if library.with_suffix(".quick").exists() and torch.cuda.is_available():
        refuse_cuda("the kernels of this turboquant were compiled only to see that they compile (TQ_CUDA_QUICK), as make package does where it finds no GPU; CMAKE_ARGS=-DTQ_CUDA_QUICK=OFF compiles them in full")
        return
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        refuse_cuda(f"{library.name} does not load ({error})")


def refuse_cuda(reason: str) -> None:
    """Every operator with CUDA tensors raises NotImplementedError with `reason` and the remedy."""
    for name in CUDA_OPERATORS:

        def refuse(*_: Any, op: str = name, **__: Any) -> NoReturn:
            raise NotImplementedError(
                f"{op} on CUDA: {reason}; build the wheel on a machine with the CUDA toolkit's nvcc "
                "('make wheel'), or move the tensors to the CPU"
            )

        _missing.impl(name, refuse, "CUDA")


load()
if torch.version.cuda and torch.cuda.is_available():
    load_cuda()
