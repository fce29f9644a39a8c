# SPDX-License-Identifier: Apache-2.0
"""attend is at most twice as far from exact attention as torch's SDPA of the same dtype over the decoded values."""

import pytest
import torch
from moved import to_cuda
from paged import Paged

F = torch.nn.functional
UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}

SHAPES = {
    "decode": dict(history=(1000, 300), own=(1, 1)),
    "decode, fringe": dict(history=(1000, 300), own=(1, 1), first=4, recent=28),
    "short": dict(history=(20, 64), own=(1, 1), first=4, recent=28),
    "a few queries": dict(history=(500, 130), own=(4, 7), first=4, recent=28),
    "a chunk": dict(history=(700, 40), own=(200, 90), first=4, recent=28),
}


def attention(query, keys, values, mask, scale):
    """query [tokens, q_heads, d], keys and values [kv_heads, positions, d]."""
    out = F.scaled_dot_product_attention(
        query.transpose(0, 1)[None], keys[None], values[None], attn_mask=mask, scale=scale, enable_gqa=True
    )
    return out[0].transpose(0, 1)


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim, group", [(64, 3), (128, 4), (256, 2), (96, 8)])
@pytest.mark.parametrize("bits", [(4, 4), (3, 2)])
def test_attend_errs_at_most_twice_as_much_as_sdpa(shape, dtype, head_dim, group, bits):
    paged = to_cuda(
        Paged(**SHAPES[shape], dtype=dtype, head_dim=head_dim, group=group, k_bits=bits[0], v_bits=bits[1], seed=3)
    )
    out, _ = paged.attend()
    decoded = paged.decode()
    ours, theirs, largest = [], [], 0.0
    for i, (length, own) in enumerate(zip(paged.history, paged.own)):
        rows = slice(sum(paged.own[:i]), sum(paged.own[: i + 1]))
        query = paged.arguments["query"][rows]
        exact = [
            torch.cat([old[i, :, :length].double(), paged.arguments[name][rows].transpose(0, 1).double()], dim=1)
            for old, name in zip(decoded, ("keys", "values"))
        ]
        positions = torch.arange(length + own, device="cuda")
        mask = positions <= length + torch.arange(own, device="cuda")[:, None]
        scale = paged.arguments["scale"]
        truth = attention(query.double(), *exact, mask, scale)
        sdpa = attention(query, *(x.to(dtype) for x in exact), mask, scale)
        ours.append((out[rows].double() - truth).flatten())
        theirs.append((sdpa.double() - truth).flatten())
        largest = max(largest, float(truth.abs().max()))
    ours, theirs = torch.cat(ours), torch.cat(theirs)
    assert float(ours.square().mean().sqrt()) <= 2 * float(theirs.square().mean().sqrt())
    # No output of a dtype is nearer than half a step of it, unless by luck.
    assert float(ours.abs().max()) <= 2 * max(float(theirs.abs().max()), UNIT[dtype] * largest)
