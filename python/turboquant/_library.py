# SPDX-License-Identifier: Apache-2.0
"""Loads the operators (torch.ops.turboquant) from the shared library beside this file."""

from pathlib import Path

import torch

CPU_LIBRARY = Path(__file__).with_name("libtq_torch_cpu.so")

if not CPU_LIBRARY.exists():
    raise ImportError(
        f"{CPU_LIBRARY} is missing: this is the source folder, not the built package; "
        "'make package' builds it and installs it into .venv"
    )
torch.ops.load_library(str(CPU_LIBRARY))
