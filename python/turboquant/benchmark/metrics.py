# SPDX-License-Identifier: Apache-2.0
"""What is computed from two models' logits, and from step times. No model here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

ROWS_AT_A_TIME = 8  # float64 copies of two [rows, vocabulary] blocks stay small


def kl_divergence(reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(reference || other) in nats of the next-token distributions, per row of two [rows, vocabulary] logits: float64 [rows]."""
    if reference.shape != other.shape or reference.dim() != 2:
        raise ValueError(f"two [rows, vocabulary] logits of one shape are needed, got {list(reference.shape)} and {list(other.shape)}")
    rows = []
    for ref, oth in zip(reference.split(ROWS_AT_A_TIME), other.split(ROWS_AT_A_TIME)):
        log_p = ref.double().log_softmax(-1)
        log_q = oth.double().log_softmax(-1)
        p = log_p.exp()
        # p = 0 contributes 0, also where a model masks a token with -inf on both sides.
        rows.append(torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1))
    # Never below 0 but for rounding.
    return torch.cat(rows).clamp_min(0.0) if rows else torch.zeros(0, dtype=torch.float64)


def top1_agreement(reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Whether both put the same token first, per row: bool [rows]."""
    return reference.argmax(-1) == other.argmax(-1)


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """KL (nats, float64) and top-1 agreement at each measured position; `positions` counts tokens from the sequence's first."""

    positions: torch.Tensor
    kl: torch.Tensor
    agreed: torch.Tensor

    @classmethod
    def of_logits(cls, first_position: int, reference: torch.Tensor, other: torch.Tensor) -> Fidelity:
        positions = torch.arange(first_position, first_position + len(reference))
        return cls(positions, kl_divergence(reference, other).cpu(), top1_agreement(reference, other).cpu())

    @classmethod
    def joined(cls, parts: Sequence[Fidelity]) -> Fidelity:
        if not parts:
            return cls(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.bool))
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in dataclasses.fields(cls)))

    def __len__(self) -> int:
        return len(self.positions)

    def kl_summary(self) -> dict[str, float | None]:
        if not len(self):
            return {"mean": None, "median": None, "p99": None, "p999": None, "max": None}
        return {
            "mean": float(self.kl.mean()),
            "median": percentile(self.kl, 0.5),
            "p99": percentile(self.kl, 0.99),
            "p999": percentile(self.kl, 0.999),
            "max": float(self.kl.max()),
        }

    def top1(self) -> float | None:
        return float(self.agreed.double().mean()) if len(self) else None


def percentile(values: torch.Tensor, share: float) -> float:
    """Linear between order statistics (numpy's default)."""
    ordered = values.double().sort().values
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (at - low) * (ordered[high] - ordered[low]))


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Index of the first token that differs (also where one ends earlier); None if they are equal."""
    for index, (a, b) in enumerate(zip(one, other)):
        if a != b:
            return index
    return None if len(one) == len(other) else min(len(one), len(other))


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """Of one generation: seconds to the first token (prefill included), and of each later token."""

    first: float
    steps: list[float]


# The steps right after a prefill pay for what later ones reuse: allocations, thread start, page growth.
WARMUP_STEPS = 2


def speed(runs: Sequence[StepTimes]) -> dict[str, float | int | None]:
    """Medians over all runs' steps but each run's first WARMUP_STEPS."""
    steps = torch.tensor([s for run in runs for s in run.steps[WARMUP_STEPS:]], dtype=torch.float64)
    median = percentile(steps, 0.5) if len(steps) else None
    return {
        "time_to_first_token_s": percentile(torch.tensor([run.first for run in runs]), 0.5),
        "time_per_token_s": median,
        "time_per_token_p90_s": percentile(steps, 0.9) if len(steps) else None,
        "tokens_per_s": 1 / median if median else None,
        "steps": len(steps),
    }
