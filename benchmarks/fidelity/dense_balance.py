# SPDX-License-Identifier: Apache-2.0
"""An idea (docs/experiments/0002): a full matrix in place of the balance. Keys A^-1 k, queries A^T q, with the A that makes the expected
squared error of q.k least where a codec's error is alike in all directions: A A^T = Q^-1/2 (Q^1/2 R Q^1/2)^1/2 Q^-1/2, R and Q the second
moments of the keys' residuals about their pages' means and of the queries. The balance is the diagonal of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fidelity.codec import Coded, Layer
from fidelity.recipe import Sketch

PAGE = 64


@dataclass(frozen=True)
class DenseBalance:
    """`seen`: tokens of the text that A is taken from, or none with `matrices` (layer -> A). `shrink`: towards the moments' diagonals."""

    seen: int | None = None
    shrink: float = 0.0
    matrices: Mapping[int, Tensor] | None = None

    def __call__(self, layer: Layer) -> Coded:
        a = self.matrices[layer.index] if self.matrices is not None else matrix(layer, self.seen, self.shrink)
        moved = Layer(layer.index, layer.query, layer.keys @ torch.linalg.inv(a).mT, layer.values, layer.scale)
        coded = Sketch(balance="off")(moved)
        return Coded(coded.keys @ a.mT, coded.values, coded.nbytes)


def matrix(layer: Layer, seen: int | None, shrink: float) -> Tensor:
    """[kv_heads, head_dim, head_dim]."""
    heads = layer.keys.shape[0]
    keys, query = layer.keys[:, :seen], layer.query.unflatten(0, (heads, -1))[:, :, :seen].flatten(1, 2)
    pages = keys[:, : keys.shape[1] // PAGE * PAGE].unflatten(1, (-1, PAGE))
    residual = (pages - pages.mean(2, keepdim=True)).flatten(1, 2)
    r, q = (_shrunk(x.mT.double() @ x.double() / x.shape[1], shrink) for x in (residual, query))
    root = _power(q, 0.5)
    back = _power(q, -0.5)
    a = _power(back @ _power(root @ r @ root, 0.5) @ back, 0.5)
    return (a / a.diagonal(0, -2, -1).mean(-1)[:, None, None]).float()


def _shrunk(moment: Tensor, shrink: float) -> Tensor:
    return (1 - shrink) * moment + shrink * torch.diag_embed(moment.diagonal(0, -2, -1))


def _power(moment: Tensor, exponent: float) -> Tensor:
    """Of symmetric matrices, eigenvalues floored at 1e-9 of the largest."""
    values, vectors = torch.linalg.eigh(moment)
    values = values.clamp_min(1e-9 * values.amax(-1, keepdim=True))
    return (vectors * values[..., None, :] ** exponent) @ vectors.mT
