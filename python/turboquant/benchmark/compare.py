# SPDX-License-Identifier: Apache-2.0
"""The comparison: every measurement in its order, and the report made of them."""

from __future__ import annotations

import dataclasses
import os

import torch
from transformers import PreTrainedModel

from turboquant.benchmark import memory, metrics
from turboquant.benchmark.arms import Arm, Setting, baseline_arm, turboquant_arm
from turboquant.benchmark.baseline import choose
from turboquant.benchmark.contexts import longest_contexts
from turboquant.benchmark.environment import describe_device, describe_model, versions
from turboquant.benchmark.fidelity import compare_on_text
from turboquant.benchmark.generation import Generation, generate
from turboquant.benchmark.metrics import Fidelity
from turboquant.benchmark.models import Subject
from turboquant.benchmark.progress import Progress

SCHEMA = 1
WARMUP_TOKENS = 32


@dataclasses.dataclass(frozen=True)
class Plan:
    setting: Setting
    max_new_tokens: int = 64
    repeats: int = 2
    # Teacher forcing over the prompt's second half (or a text given): tokens a call, 0 for none.
    chunk: int = 16
    text: torch.Tensor | None = None  # [count] tokens that replace the prompt there
    text_prefix: int | None = None  # tokens of it that are prefilled, not measured; None: half
    seed: int = 0
    baseline_attention: str = "auto"  # baseline.CHOICES
    longest: bool = False  # look for the longest context that fits


@dataclasses.dataclass(frozen=True)
class Comparison:
    report: dict  # what --json writes
    texts: dict[str, str]
    fidelity: dict[str, Fidelity]  # "text" and "continuation"


def compare(subject: Subject, inputs: dict, plan: Plan, progress: Progress) -> Comparison:
    model = subject.model
    torch.manual_seed(plan.seed)
    static = plan.setting.static
    plain, ours = baseline_arm(model, static), turboquant_arm(model, plan.setting)
    prompt_tokens = inputs["input_ids"].shape[1]
    # Refuses an unsupported model before anything is run.
    ours.make_cache(prompt_tokens + plan.max_new_tokens)

    _warm_up(model, inputs, (plain, ours), plan, progress)
    baseline, baseline_words = choose(model, inputs, static, plan.baseline_attention, progress)
    continuation, runs = _generations(model, inputs, baseline, ours, plan, progress)
    texts = _compare_on_text(subject, inputs, (plain, ours), plan, progress)

    fidelity = {"text": texts, "continuation": continuation}
    pooled = Fidelity.joined([part for part in fidelity.values() if len(part)])
    tokens = {key: generations[-1].tokens for key, generations in runs.items()}
    held = _bytes(runs)
    longest = longest_contexts(model, plan.setting, progress) if plan.longest else None
    speeds = {key: metrics.speed([g.times for g in generations]) for key, generations in runs.items()}
    report = {
        "schema": SCHEMA,
        "model": describe_model(subject),
        "setting": dataclasses.asdict(plan.setting),
        "baseline": baseline_words,
        "prompt_tokens": prompt_tokens,
        "new_tokens": {key: len(value) for key, value in tokens.items()},
        "repeats": plan.repeats,
        "seed": plan.seed,
        "cache_bytes": {"baseline": held["baseline_16_bit"], "turboquant": held["turboquant"]},
        "ratio": held["baseline_16_bit"] / held["turboquant"],
        "memory": held,
        "longest_context": longest,
        "tokens_per_s": {key: value["tokens_per_s"] for key, value in speeds.items()},
        "time_to_first_token_s": {key: value["time_to_first_token_s"] for key, value in speeds.items()},
        "speed": speeds,
        "first_differing_token": metrics.first_difference(tokens["baseline"], tokens["turboquant"]),
        "baseline_repeatable": all(run.tokens == tokens["baseline"] for run in runs["baseline"]),
        "kl": pooled.kl_summary(),
        "top1": pooled.top1(),
        "fidelity": {
            key: {"positions": len(part), "kl": part.kl_summary(), "top1": part.top1()} for key, part in fidelity.items()
        }
        | {"text_tokens_per_call": plan.chunk},
        "device": describe_device(model.device),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "versions": versions(),
    }
    decoded = {key: _decode(subject, value) for key, value in tokens.items()}
    return Comparison(report, decoded, fidelity)


def _warm_up(model: PreTrainedModel, inputs: dict, arms: tuple[Arm, Arm], plan: Plan, progress: Progress) -> None:
    """Starts threads and loads what is loaded lazily: a few tokens where the prompt can be cut, else all of it; on a GPU too, where
    cuDNN plans anew at each length, allocations of a new size wait for the driver, and steps are compiled for one capacity."""
    if _only_text(inputs) and model.device.type != "cuda":
        inputs = {key: value[:, :WARMUP_TOKENS] for key, value in inputs.items()}
    with progress.task("warm-up"):
        for arm in arms:
            generate(model, inputs, arm, 2, room=plan.max_new_tokens)


def _generations(
    model: PreTrainedModel, inputs: dict, baseline: Arm, ours: Arm, plan: Plan, progress: Progress
) -> tuple[Fidelity, dict[str, list[Generation]]]:
    """The timed runs, A B, B A, A B, ...: a machine that gets slower or faster meanwhile does so for both.

    In the first round ours is made to follow the baseline's answer, so that both can be compared at each of its tokens, one
    token a call. The answer's first token is left out: its logits come from the prefill, which does not read the cache."""
    count = plan.max_new_tokens
    with progress.task(f"{baseline.label} answers", count) as step:
        free = generate(model, inputs, baseline, count, keep_logits=True, on_token=step)
    with progress.task("TurboQuantCache follows, teacher-forced", len(free.tokens)) as step:
        forced = generate(model, inputs, ours, count, forced=free.tokens, keep_logits=True, on_token=step)
    first = inputs["input_ids"].shape[1]
    continuation = Fidelity.of_logits(first, free.logits[1:], forced.logits[1:])
    runs = {baseline.key: [free], ours.key: [forced]}
    # Ours has not spoken for itself yet, so there is always a second round for it.
    rounds = [(ours, baseline) if repeat % 2 else (baseline, ours) for repeat in range(1, plan.repeats)] or [(ours,)]
    for arms in rounds:
        for arm in arms:
            runs[arm.key][-1].drop()
            with progress.task(f"{arm.label} answers again" if arm is baseline else "TurboQuantCache answers", count) as step:
                runs[arm.key].append(generate(model, inputs, arm, count, on_token=step))
    return continuation, runs


def _bytes(runs: dict[str, list[Generation]]) -> dict[str, int | None]:
    """Of the last runs' caches; they are dropped here, one after the other, and the process is watched."""
    last = {key: generations[-1] for key, generations in runs.items()}
    held = {
        "baseline_16_bit": memory.baseline_bytes(last["baseline"].cache),
        "baseline_as_run": memory.held_bytes(last["baseline"].cache),
        "turboquant": memory.held_bytes(last["turboquant"].cache),
        "cached_tokens": int(last["baseline"].cache.get_seq_length()),
    }
    for key, run in last.items():
        device = next(memory.held_tensors(run.cache)).device
        held[f"{key}_peak"] = run.peak_bytes
        held[f"{key}_released"] = memory.released_bytes(run.drop, device)
    return held


def _compare_on_text(subject: Subject, inputs: dict, arms: tuple[Arm, Arm], plan: Plan, progress: Progress) -> Fidelity:
    text = plan.text if plan.text is not None else inputs["input_ids"][0] if _only_text(inputs) else None
    if plan.chunk == 0 or text is None or len(text) < 2:
        return Fidelity.joined([])
    prefix = plan.text_prefix if plan.text_prefix is not None else len(text) // 2
    with progress.task(f"teacher-forced text, {plan.chunk} tokens a call", len(text)) as step:
        return compare_on_text(subject.model, arms, text, prefix, plan.chunk, step)


def _only_text(inputs: dict) -> bool:
    return inputs.keys() <= {"input_ids", "attention_mask"}


def _decode(subject: Subject, tokens: list[int]) -> str:
    if subject.tokenizer is None:
        return " ".join(map(str, tokens))
    return subject.tokenizer.decode(tokens, skip_special_tokens=True).strip()
