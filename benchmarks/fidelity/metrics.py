# SPDX-License-Identifier: Apache-2.0
"""Numbers from the logits of one text under two caches, in float64. No model here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from turboquant.benchmark.metrics import percentile

ROWS = {"cpu": 16, "cuda": 256}  # at once: float64 [rows, vocabulary] stays small


@dataclass(frozen=True)
class Divergence:
    """At each position of a text, reference against other. float64 [positions]; the nll are one shorter."""

    kl: Tensor  # KL(reference || other), nats
    total_variation: Tensor  # half the L1 distance
    agreed: Tensor  # 1 where both put the same token first
    reference_nll: Tensor  # -log p of the text's next token
    nll: Tensor


@torch.no_grad()
def compare(reference: Tensor, other: Tensor, tokens: Tensor) -> Divergence:
    """Two [tokens, vocabulary] logits over the text `tokens`."""
    columns: list[list[Tensor]] = [[], [], [], [], []]
    step, tokens = ROWS[reference.device.type], tokens.to(reference.device)
    for start in range(0, len(tokens), step):
        rows, following = slice(start, start + step), tokens[start + 1 : start + step + 1, None]
        log_p, log_q = (x[rows].double().log_softmax(-1) for x in (reference, other))
        p, q = log_p.exp(), log_q.exp()
        # A vocabulary's masked tokens have -inf on both sides, and contribute nothing.
        columns[0].append(torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1).clamp_min(0.0))
        columns[1].append((p - q).abs_().sum(-1) / 2)
        columns[2].append(log_p.argmax(-1) == log_q.argmax(-1))
        for column, log in ((3, log_p), (4, log_q)):
            columns[column].append(-log[: len(following)].gather(1, following)[:, 0])
    return Divergence(*(torch.cat(column).double().cpu() for column in columns))


def summary(d: Divergence) -> dict[str, float]:
    kl = d.kl
    return {
        "positions": len(kl),
        "kl": float(kl.mean()),
        "kl_median": percentile(kl, 0.5),
        "kl_p99": percentile(kl, 0.99),
        "kl_p999": percentile(kl, 0.999),
        "kl_max": float(kl.max()),
        "one_minus_tv": 1.0 - float(d.total_variation.mean()),
        "top1": float(d.agreed.mean()),
        "perplexity": float(d.nll.mean().exp()),
        "perplexity_ratio": float((d.nll.mean() - d.reference_nll.mean()).exp()),
    }


def spread(values: list[float]) -> dict[str, float | None]:
    """Over texts: mean, least, most, and the mean's standard error."""
    x = torch.tensor(values, dtype=torch.float64)
    error = float(x.std() / len(x) ** 0.5) if len(x) > 1 else None
    return {"mean": float(x.mean()), "least": float(x.min()), "most": float(x.max()), "standard_error": error}
