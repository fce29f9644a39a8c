# SPDX-License-Identifier: Apache-2.0
"""The operators, from libraries that were just built or from the installed package."""

from __future__ import annotations

from pathlib import Path

import torch

LIBRARIES = ("libtq_torch_cpu.so", "libtq_torch_cuda.so")


def load(folder: str | None) -> None:
    """Registers torch.ops.turboquant. The libraries of `folder` (at any depth), else the package's."""
    if folder is None:
        import turboquant.ops  # noqa: F401

        return
    for name in LIBRARIES:
        found = sorted(Path(folder).rglob(name))
        if not found:
            raise SystemExit(f"{name} is not below {folder}; build it first, for example with `make gpu-bench`")
        torch.ops.load_library(str(found[0]))


def bound(name: str, arguments: dict) -> tuple:
    """An operator and its arguments in its own order: call it as `op(*args)`."""
    op = getattr(torch.ops.turboquant, name).default
    return op, tuple(arguments[argument.name] for argument in op._schema.arguments)


def call(name: str, arguments: dict):
    op, args = bound(name, arguments)
    return op(*args)
