# SPDX-License-Identifier: Apache-2.0
"""Runs `model.generate` and looks on: times, bytes, tokens, logits."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from turboquant.benchmark import memory
from turboquant.benchmark.arms import Arm, synchronize
from turboquant.benchmark.metrics import StepTimes


@dataclasses.dataclass
class Generation:
    tokens: list[int]
    times: StepTimes
    cache: object | None
    logits: torch.Tensor | None  # [tokens, vocabulary], before any processor
    peak_bytes: int | None  # most memory held meanwhile, beyond what was before; None where it is not known

    def drop(self) -> None:
        """Lets go of what is large."""
        self.cache = self.logits = None


def generate(
    model: PreTrainedModel,
    inputs: dict,
    arm: Arm,
    max_new_tokens: int,
    *,
    room: int | None = None,
    forced: Sequence[int] | None = None,
    keep_logits: bool = False,
    on_token: Callable[[], None] = lambda: None,
) -> Generation:
    """Greedy; the cache has room for `room` tokens (default: `max_new_tokens`) after the prompt. With `forced`, every step's choice is replaced by the next forced token (teacher forcing through the path in use)."""
    clock = _Clock(model.device, on_token)
    processors = LogitsProcessorList([] if forced is None else [_Forced(forced)])
    prompt_tokens = inputs["input_ids"].shape[1]
    cache = arm.make_cache(prompt_tokens + (room or max_new_tokens))
    peak = memory.Peak(model.device)
    with arm.attention():
        clock.start()
        out = model.generate(
            **inputs,
            past_key_values=cache,
            max_new_tokens=max_new_tokens if forced is None else len(forced),
            stopping_criteria=StoppingCriteriaList([clock]),
            logits_processor=processors,
            do_sample=False,
            num_beams=1,
            # The model's own sampling settings would only cause warnings.
            temperature=None,
            top_p=None,
            top_k=None,
            cache_implementation=None,
            return_dict_in_generate=True,
            output_logits=keep_logits,
        )
    peak_bytes = peak.bytes()
    return Generation(
        tokens=out.sequences[0, prompt_tokens:].tolist(),
        times=clock.step_times(),
        cache=cache,
        logits=torch.cat(out.logits).float() if keep_logits else None,
        peak_bytes=None if keep_logits else peak_bytes,
    )


class _Clock(StoppingCriteria):
    """Called once a token, after it is chosen; never stops."""

    def __init__(self, device: torch.device, on_token: Callable[[], None]) -> None:
        self.device = device
        self.on_token = on_token
        self.stamps: list[float] = []

    def start(self) -> None:
        synchronize(self.device)
        self.stamps = [time.perf_counter()]

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        synchronize(self.device)
        self.stamps.append(time.perf_counter())
        self.on_token()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def step_times(self) -> StepTimes:
        spans = [b - a for a, b in zip(self.stamps, self.stamps[1:])]
        return StepTimes(spans[0], spans[1:])


class _Forced(LogitsProcessor):
    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = iter(tokens)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        only = torch.full_like(scores, float("-inf"))
        only[:, next(self.tokens)] = 0.0
        return only
