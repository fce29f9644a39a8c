# SPDX-License-Identifier: Apache-2.0
"""An idea (docs/experiments/0001): code a key's coordinates one after the other, each with the errors of those before it fed back, so that
the error is small where queries look. The format and the reading kernels stay as they are; only encode would change.

For an error e the score of a query q~ is off by q~.e, in the mean over queries e^T M e with M = E q~ q~^T. With M + damping = L^T D L, L
unit lower triangular, that is sum D_i (e_i + sum_{j<i} L_ij e_j)^2: coordinate i is coded with sum_{j<i} L_ij e_j added.
"""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 1.0  # times the mean of M's diagonal


def metric(query: Tensor) -> Tensor:
    """query [heads, samples, dim], rotated and balanced -> [heads, dim, dim]."""
    return query.mT @ query / query.shape[1]


def codes(u: Tensor, scale: Tensor, m: Tensor, centroids: Tensor, boundaries: Tensor) -> Tensor:
    """u [heads, tokens, dim], scale [heads, tokens, 1] -> centroids, of which scale * result stands for u."""
    dim = u.shape[-1]
    eye = torch.eye(dim, device=u.device)
    lower = _unit_lower(m + DAMPING * m.diagonal(0, -2, -1).mean(-1)[..., None, None] * eye)
    found, errors = torch.zeros_like(u), torch.zeros_like(u)
    for i in range(dim):
        carried = (errors[..., :i] @ lower[:, i, :i, None])[..., 0] if i else 0.0
        wanted = (u[..., i] + carried) / scale[..., 0]
        found[..., i] = centroids[torch.bucketize(wanted.contiguous(), boundaries)]
        errors[..., i] = u[..., i] - found[..., i] * scale[..., 0]
    return found


def _unit_lower(m: Tensor) -> Tensor:
    """L of m = L^T D L."""
    upper = torch.linalg.cholesky(m.flip(-1, -2)).flip(-1, -2)  # m = upper upper^T
    return (upper / upper.diagonal(0, -2, -1)[..., None, :]).mT
