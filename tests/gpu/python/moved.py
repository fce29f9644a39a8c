# SPDX-License-Identifier: Apache-2.0
"""A call of tests/python/paged.py on the device."""

import torch
from paged import Paged


def to_cuda(paged: Paged, device: str = "cuda") -> Paged:
    moved = {name: a.to(device) if isinstance(a, torch.Tensor) else a for name, a in paged.arguments.items()}
    # New tensors even where they were there already: the CPU's call and this one write different bytes.
    return paged.but(**moved)
