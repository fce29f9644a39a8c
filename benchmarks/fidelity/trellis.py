# SPDX-License-Identifier: Apache-2.0
"""An idea (docs/experiments/0009): trellis-coded quantisation. python benchmarks/fidelity/trellis.py

A code of b bits picks one of 2^b of the 2^(b+1) levels of a codebook: which ones, a state says that the codes before it have led to. The encoder
finds the best path (Viterbi). Ungerboeck's trellises of 4 and 8 states; codebooks trained on Gaussian numbers by Lloyd's iteration.
"""

from __future__ import annotations

import json
import sys

import torch
from torch import Tensor

# next state and subset of levels (level index mod 4) of each state's two branches
TRELLISES = {
    4: (((0, 0), (1, 2)), ((2, 1), (3, 3)), ((0, 2), (1, 0)), ((2, 3), (3, 1))),
    8: (
        ((0, 0), (1, 2)), ((2, 1), (3, 3)), ((4, 2), (5, 0)), ((6, 3), (7, 1)),
        ((0, 2), (1, 0)), ((2, 3), (3, 1)), ((4, 0), (5, 2)), ((6, 1), (7, 3)),
    ),
}  # fmt: skip


def code(x: Tensor, levels: Tensor, states: int) -> Tensor:
    """x [vectors, dim] -> indices of levels; each path begins in state 0."""
    trellis, count, dim = TRELLISES[states], *x.shape
    cost = torch.full((count, states), torch.inf)
    cost[:, 0] = 0
    back = torch.empty(count, dim, states, dtype=torch.int64)
    chosen = torch.empty(count, dim, states, dtype=torch.int64)
    members = [torch.arange(s, len(levels), 4) for s in range(4)]
    for t in range(dim):
        best = [(x[:, t, None] - levels[m]).square().min(-1) for m in members]  # of each subset
        new = torch.full_like(cost, torch.inf)
        for state, branches in enumerate(trellis):
            for to, subset in branches:
                candidate = cost[:, state] + best[subset].values
                better = candidate < new[:, to]
                new[:, to] = torch.where(better, candidate, new[:, to])
                back[:, t, to] = torch.where(better, state, back[:, t, to])
                chosen[:, t, to] = torch.where(better, members[subset][best[subset].indices], chosen[:, t, to])
        cost = new
    state, out = cost.argmin(-1, keepdim=True), torch.empty(count, dim, dtype=torch.int64)
    for t in reversed(range(dim)):
        out[:, t] = chosen[:, t].gather(-1, state)[:, 0]
        state = back[:, t].gather(-1, state)
    return out


def scalar(x: Tensor, levels: Tensor) -> Tensor:
    return torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)


def trained(x: Tensor, size: int, encode, rounds: int) -> Tensor:
    levels = torch.special.ndtri((torch.arange(size) + 0.5) / size) * 1.2
    for _ in range(rounds):
        index = encode(x, levels).flatten()
        total = torch.zeros(size).index_add_(0, index, x.flatten())
        number = torch.bincount(index, minlength=size)
        levels = torch.where(number > 0, total / number.clamp_min(1), levels).sort().values
    return levels


def main(path: str | None) -> None:
    torch.manual_seed(0)
    training, test = torch.randn(400, 64), torch.randn(1000, 64)
    rows = []
    for bits in (2, 3, 4):
        plain = trained(torch.randn(20000, 64), 2**bits, scalar, 200)
        row = {"bits": bits, "scalar": float((test - plain[scalar(test, plain)]).square().mean())}
        for states in TRELLISES:
            levels = trained(training, 2 ** (bits + 1), lambda x, c, n=states: code(x, c, n), 25)
            row[f"{states} states"] = float((test - levels[code(test, levels, states)]).square().mean())
        rows.append({k: round(v, 6) for k, v in row.items()})
        print(rows[-1], flush=True)
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"what": "mean squared error of Gaussian numbers of variance 1, vectors of 64, no scale search", "rows": rows}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
