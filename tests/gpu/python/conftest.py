# SPDX-License-Identifier: Apache-2.0
"""Tests on CUDA tensors: `make gpu-test`. They share tests/python/paged.py."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))


@pytest.fixture(autouse=True)
def gpu():
    assert torch.cuda.is_available(), "these tests need a GPU: make gpu-test"
    # torch's own products are what ours are compared with.
    torch.backends.cuda.matmul.allow_tf32 = False
