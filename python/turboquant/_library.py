# SPDX-License-Identifier: Apache-2.0
"""Loads the operators (torch.ops.turboquant) from the shared library beside this file."""

import re
from pathlib import Path

import torch

CPU_LIBRARY = Path(__file__).with_name("libtq_torch_cpu.so")
MINIMUM_TORCH = (2, 11)


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


load()
