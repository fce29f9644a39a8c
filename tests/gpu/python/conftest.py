# SPDX-License-Identifier: Apache-2.0
"""Tests on CUDA tensors: `make gpu-test`. They share helpers and test bodies with tests/python."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))
SHARED = ("attention", "build", "hold", "metric", "surgery", "offload")  # test bodies that both folders run
pytest.register_assert_rewrite(
    "layer_pair", "test_generate_models", "test_generate_modes", *(f"test_cache_{name}" for name in SHARED)
)
import where  # noqa: E402

where.DEVICE = "cuda"


@pytest.fixture(autouse=True)
def gpu():
    assert torch.cuda.is_available(), "these tests need a GPU: make gpu-test"
    # torch's own products are what ours are compared with.
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture
def one_thread():
    """Of the CPU's test bodies; here the CPU computes nothing."""
