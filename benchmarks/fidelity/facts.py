# SPDX-License-Identifier: Apache-2.0
"""What a number depends on besides the code."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch

from turboquant.benchmark.environment import describe_device, describe_model, versions
from turboquant.benchmark.models import Subject


def collect(subject: Subject, device: torch.device, commit: str | None = None) -> dict[str, object]:
    model = describe_model(subject)
    return {"device": describe_device(device), "versions": versions(), "commit": commit or _commit(), "dtype": model["dtype"]}


def _commit() -> str:
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return run.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
