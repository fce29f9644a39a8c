# SPDX-License-Identifier: Apache-2.0
"""The comparison: every measurement in its order, and the report made of them."""

from __future__ import annotations

import dataclasses

import torch

from turboquant.benchmark import memory, metrics
from turboquant.benchmark.arms import Arm, Setting, baseline_arm, turboquant_arm
from turboquant.benchmark.environment import describe_device, describe_model, versions
from turboquant.benchmark.fidelity import compare_on_text
from turboquant.benchmark.generation import Generation, generate
from turboquant.benchmark.metrics import Fidelity
from turboquant.benchmark.models import Subject
from turboquant.benchmark.progress import Progress

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Plan:
    setting: Setting
    max_new_tokens: int = 96
    repeats: int = 2
    # Teacher forcing over the prompt's second half (or a text given): tokens a call, 0 for none.
    chunk: int = 16
    text: torch.Tensor | None = None  # [count] tokens that replace the prompt there
    text_prefix: int | None = None  # tokens of it that are prefilled, not measured; None: half
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Comparison:
    report: dict  # what --json writes
    texts: dict[str, str]
    fidelity: dict[str, Fidelity]  # "text" and "continuation"


def compare(subject: Subject, inputs: dict, plan: Plan, progress: Progress) -> Comparison:
    model = subject.model
    torch.manual_seed(plan.seed)
    baseline, ours = baseline_arm(model), turboquant_arm(model, plan.setting)
    # Refuses an unsupported model before anything is run.
    ours.make_cache()
    prompt_tokens = inputs["input_ids"].shape[1]

    continuation, reference = _continuation(model, inputs, baseline, ours, plan, progress)
    runs = _timed_runs(model, inputs, (baseline, ours), plan, progress)
    texts = _compare_on_text(subject, inputs, (baseline, ours), plan, progress)

    fidelity = {"text": texts, "continuation": continuation}
    pooled = Fidelity.joined([part for part in fidelity.values() if len(part)])
    tokens = {key: generations[0].tokens for key, generations in runs.items()}
    held = _bytes(runs)
    speeds = {key: metrics.speed([g.times for g in generations]) for key, generations in runs.items()}
    report = {
        "schema": SCHEMA,
        "model": describe_model(subject),
        "setting": dataclasses.asdict(plan.setting),
        "prompt_tokens": prompt_tokens,
        "new_tokens": {key: len(value) for key, value in tokens.items()},
        "repeats": plan.repeats,
        "seed": plan.seed,
        "cache_bytes": {"baseline": held["baseline_16_bit"], "turboquant": held["turboquant"]},
        "ratio": held["baseline_16_bit"] / held["turboquant"],
        "memory": held,
        "tokens_per_s": {key: value["tokens_per_s"] for key, value in speeds.items()},
        "time_to_first_token_s": {key: value["time_to_first_token_s"] for key, value in speeds.items()},
        "speed": speeds,
        "first_differing_token": metrics.first_difference(tokens["baseline"], tokens["turboquant"]),
        "baseline_repeatable": all(g.tokens == reference for g in runs["baseline"]),
        "kl": pooled.kl_summary(),
        "top1": pooled.top1(),
        "fidelity": {
            key: {"positions": len(part), "kl": part.kl_summary(), "top1": part.top1()} for key, part in fidelity.items()
        }
        | {"text_tokens_per_call": plan.chunk},
        "device": describe_device(model.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    decoded = {key: _decode(subject, value) for key, value in tokens.items()}
    return Comparison(report, decoded, fidelity)


def _continuation(model, inputs: dict, baseline: Arm, ours: Arm, plan: Plan, progress: Progress) -> tuple[Fidelity, list[int]]:
    """The baseline's own answer, and how our cache would have continued at each of its tokens, one token a call.

    The first token is left out: its logits come from the prefill, which does not read the cache. These two untimed
    runs are also the warm-up."""
    with progress.task("baseline's answer (also warm-up)", plan.max_new_tokens) as step:
        free = generate(model, inputs, baseline, plan.max_new_tokens, keep_logits=True, on_token=step)
    with progress.task("the same, teacher-forced on TurboQuant", len(free.tokens)) as step:
        forced = generate(model, inputs, ours, len(free.tokens), forced=free.tokens, keep_logits=True, on_token=step)
    count = min(len(free.logits), len(forced.logits))
    first = inputs["input_ids"].shape[1]
    return Fidelity.of_logits(first, free.logits[1:count], forced.logits[1:count]), free.tokens


def _timed_runs(model, inputs: dict, arms: tuple[Arm, Arm], plan: Plan, progress: Progress) -> dict[str, list[Generation]]:
    """A B, B A, A B, ...: a machine that gets slower or faster meanwhile does so for both."""
    runs: dict[str, list[Generation]] = {arm.key: [] for arm in arms}
    with progress.task("timed runs, alternating", 2 * plan.repeats * plan.max_new_tokens) as step:
        for repeat in range(plan.repeats):
            for arm in arms if repeat % 2 == 0 else arms[::-1]:
                run = generate(model, inputs, arm, plan.max_new_tokens, on_token=step)
                if repeat + 1 < plan.repeats:
                    run.cache = None
                runs[arm.key].append(run)
    return runs


def _bytes(runs: dict[str, list[Generation]]) -> dict[str, int | None]:
    """Of the last runs' caches; they are dropped here, one after the other, and the process is watched."""
    last = {key: generations[-1] for key, generations in runs.items()}
    held = {
        "baseline_16_bit": memory.baseline_bytes(last["baseline"].cache),
        "baseline_as_run": memory.held_bytes(last["baseline"].cache),
        "turboquant": memory.held_bytes(last["turboquant"].cache),
        "cached_tokens": last["baseline"].cache.get_seq_length(),
    }
    for key, run in last.items():
        device = next(memory.held_tensors(run.cache)).device

        def drop(run: Generation = run) -> None:
            run.cache = None

        held[f"{key}_released"] = memory.released_bytes(drop, device)
    return held


def _compare_on_text(subject: Subject, inputs: dict, arms: tuple[Arm, Arm], plan: Plan, progress: Progress) -> Fidelity:
    only_text = inputs.keys() <= {"input_ids", "attention_mask"}
    text = plan.text if plan.text is not None else inputs["input_ids"][0] if only_text else None
    if plan.chunk == 0 or text is None or len(text) < 2:
        return Fidelity.joined([])
    prefix = plan.text_prefix if plan.text_prefix is not None else len(text) // 2
    with progress.task(f"teacher-forced text, {plan.chunk} tokens a call", len(text)) as step:
        return compare_on_text(subject.model, arms, text, prefix, plan.chunk, step)


def _decode(subject: Subject, tokens: list[int]) -> str:
    if subject.tokenizer is None:
        return " ".join(map(str, tokens))
    return subject.tokenizer.decode(tokens, skip_special_tokens=True).strip()
