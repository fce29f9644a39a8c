# SPDX-License-Identifier: Apache-2.0
"""The operator key_metric on CUDA tensors: the bytes of the CPU, whatever the strides; what torch asks of an operator."""

import pytest
import torch
from test_key_metric import base_of, signs_of
from turboquant import ops
from turboquant.metric import key_metric


def moved(tensor):
    return None if tensor is None else tensor.cuda()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [64, 80, 128, 256])
def test_a_metric_has_the_same_bytes_on_both_devices(dim, dtype):
    torch.manual_seed(3)
    query, signs = (torch.randn(2, 8, 700, dim) + torch.randn(8, 1, dim)).to(dtype), signs_of(2, dim)
    starts = torch.tensor([0, 40], dtype=torch.int32)
    expected = key_metric(query, starts, signs, base_of(dim))
    room = torch.empty(2, 700, 8, dim + 1, dtype=dtype, device="cuda")
    for there in (query.cuda(), query.transpose(1, 2).contiguous().cuda().transpose(1, 2), room[..., 1:].transpose(1, 2)):
        there.copy_(query)
        assert torch.equal(key_metric(there, starts.cuda(), signs.cuda(), moved(base_of(dim))).cpu(), expected)


def test_a_moment_grows_in_a_graph():
    torch.manual_seed(4)
    query, signs = torch.randn(1, 8, 64, 128).bfloat16(), signs_of(2, 128)
    whole = key_metric(query, None, signs, None)
    there, signs = query[:, :, :1].cuda(), signs.cuda()
    moment = torch.zeros(2, 128, 128, dtype=torch.int32, device="cuda")
    metric = torch.empty_like(moment, dtype=torch.int8)
    ops.key_metric(there, None, signs, None, 1, False, moment, metric)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.key_metric(there, None, signs, None, 1, False, moment, metric)
    moment.zero_()
    for token in range(64):
        there.copy_(query[:, :, token : token + 1])
        graph.replay()
    assert torch.equal(metric.cpu(), whole)


def test_key_metric_passes_opcheck_on_cuda():
    query, signs = torch.randn(2, 4, 5, 64, device="cuda"), torch.ones(2, 64, device="cuda")
    moment = torch.zeros(2, 64, 64, dtype=torch.int32, device="cuda")
    arguments = (query, None, signs, None, 2, True, moment, torch.zeros_like(moment, dtype=torch.int8))
    torch.library.opcheck(torch.ops.turboquant.key_metric.default, arguments)
