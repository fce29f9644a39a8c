# SPDX-License-Identifier: Apache-2.0
"""tests/python/test_cache_metric.py, its caches on the GPU (conftest.py); and both devices' metrics."""

import pytest
import torch
from test_cache_metric import *  # noqa: F403
from test_cache_metric import signs_of
from turboquant import ops
from turboquant.metric import key_metric


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [64, 80, 128])
def test_a_metric_has_the_same_bytes_on_both_devices(dim, dtype):
    torch.manual_seed(3)
    query, signs = (torch.randn(2, 8, 700, dim) + torch.randn(8, 1, dim)).to(dtype), signs_of(2, dim)
    base = ops.hadamard_base(dim) if ops.hadamard_base_size(dim) > 1 else None
    starts = torch.tensor([0, 40], dtype=torch.int32)
    expected = key_metric(query, starts, signs, base)
    found = key_metric(query.cuda(), starts.cuda(), signs.cuda(), None if base is None else base.cuda())
    assert torch.equal(found.cpu(), expected)
