# SPDX-License-Identifier: Apache-2.0
"""Recall of inner-product search over quantised vectors (the paper's section 4.4): the true nearest vector among the k best by the estimate.

The data: the token embeddings of SmolLM2-135M (49,152 of 576 coordinates, Apache-2.0), brought to length 1, a part of them as queries.
No training, no index: every query meets every quantised vector.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fidelity.reproduce.distortion import _round_trip, ops_have_no_hadamard

KS = (1, 2, 4, 8, 16, 32, 64)
QUERIES = 1000


@torch.no_grad()
def measure(embeddings: Tensor, bits=(2, 3, 4), seed: int = 0) -> list[dict]:
    vectors = torch.nn.functional.normalize(embeddings.float(), dim=1)
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))
    queries, base = vectors[order[:QUERIES]], vectors[order[QUERIES:]].contiguous()
    truth = (queries @ base.T).argmax(1)
    haar = ops_have_no_hadamard(base.shape[1])
    rows = []
    for b in bits:
        for kind in ("mse", "prod"):
            found = (queries @ _round_trip(base, b, kind, haar).T).topk(max(KS), dim=1).indices
            hits = found == truth[:, None]
            recall = {str(k): float(hits[:, :k].any(1).float().mean()) for k in KS}
            rows.append({"vectors": len(base), "dim": base.shape[1], "queries": QUERIES, "bits": b, "quantiser": kind, "recall": recall})
    return rows
