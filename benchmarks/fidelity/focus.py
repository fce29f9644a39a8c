# SPDX-License-Identifier: Apache-2.0
"""An idea (docs/experiments/0004): of a search's candidates, take the one whose error is small where queries look.

Rotated and balanced, a head's queries have one direction, near their mean, with a quarter of their second moment M. Taking M for
w (I + f f^T), an error e costs |e|^2 + (f.e)^2: one more dot product a candidate, with a vector a KV head that the first call's queries
give, like the balance. Only encode changes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def direction(m: Tensor) -> Tensor:
    """m [heads, dim, dim] -> f [heads, 1, dim]."""
    values, vectors = torch.linalg.eigh(m)
    rest = values[:, :-1].mean(-1, keepdim=True)
    weight = (values[:, -1:] / rest.clamp_min(1e-30) - 1).clamp(0, 1e6).sqrt()
    return (weight * vectors[..., -1])[:, None]
