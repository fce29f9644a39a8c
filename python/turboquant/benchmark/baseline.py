# SPDX-License-Identifier: Apache-2.0
"""Which attention the baseline gets. On a GPU torch's own choice of SDPA's backend can be several times slower than its flash
backend (cuDNN plans anew at every length), so both are tried, and the one that decodes faster is what ours is compared with."""

from __future__ import annotations

from transformers import PreTrainedModel

from turboquant.benchmark.arms import Arm, baseline_arm
from turboquant.benchmark.generation import generate
from turboquant.benchmark.metrics import speed
from turboquant.benchmark.progress import Progress

CHOICES = ("auto", "default", "flash")
TRIAL_TOKENS = 12


def choose(model: PreTrainedModel, inputs: dict, static: bool, wanted: str, progress: Progress) -> tuple[Arm, dict]:
    """The arm, and the report's words on it. Only "auto" tries; a StaticCache attends with a mask, which flash does not take."""
    if wanted != "auto" or static or model.device.type != "cuda":
        attention = "flash" if wanted == "flash" else "default"
        return baseline_arm(model, static, attention), _described(static, attention, {})
    with progress.task("which attention is the faster baseline?"):
        times = {attention: _time_per_token(model, inputs, attention) for attention in ("default", "flash")}
    best = min((name for name in times if times[name]), key=times.get, default="default")
    return baseline_arm(model, static, best), _described(static, best, times)


def _described(static: bool, attention: str, times: dict[str, float | None]) -> dict:
    return {"cache": "StaticCache" if static else "DynamicCache", "attention": attention, "tried_s": times}


def _time_per_token(model: PreTrainedModel, inputs: dict, attention: str) -> float | None:
    """None where the backend does not take this model's attention."""
    try:
        run = generate(model, inputs, baseline_arm(model, attention=attention), TRIAL_TOKENS)
    except RuntimeError as error:
        if "No available kernel" not in str(error):
            raise
        return None
    return speed([run.times])["time_per_token_s"]
