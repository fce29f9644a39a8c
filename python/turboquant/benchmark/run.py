# SPDX-License-Identifier: Apache-2.0
"""From parsed arguments to report, plot and tables."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from transformers.utils import logging as transformers_logging

from turboquant.benchmark import inputs, models
from turboquant.benchmark.arms import Setting
from turboquant.benchmark.compare import Comparison, Plan, compare
from turboquant.benchmark.demo_model import NAME, demo_model
from turboquant.benchmark.errors import BenchmarkError
from turboquant.benchmark.progress import Progress
from turboquant.benchmark.tables import show
from turboquant.calibration import Calibration

DEMO_JSON, DEMO_PLOT = "demo-report.json", "demo-report.png"
DEFAULT_PROMPT = "Explain in a few sentences how a tide comes about."


def run(arguments: argparse.Namespace, flags: Sequence[str]) -> Comparison:
    console, progress = Console(), Progress()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    json_path, plot_path = _outputs(arguments)
    save_plot = _plotter() if plot_path else None
    if arguments.longest and models.resolve_device(arguments.device).type != "cuda":
        raise BenchmarkError("--longest needs a GPU: a CPU's memory is shared with all else.")
    subject = _load(arguments, progress)
    _check_balance(arguments.balance, subject)
    prompt = _prompt(arguments, subject)
    inputs.check_length(subject, prompt, arguments.max_new_tokens)
    plan = Plan(
        setting=Setting(arguments.k_bits, arguments.v_bits, arguments.fringe, arguments.balance, arguments.static),
        max_new_tokens=arguments.max_new_tokens,
        repeats=arguments.repeats,
        chunk=arguments.chunk,
        text=_text(arguments, subject),
        text_prefix=arguments.text_prefix,
        seed=arguments.seed,
        baseline_attention=arguments.baseline_attention,
        longest=arguments.longest,
    )
    _check_text(subject, plan.text if plan.text is not None else prompt["input_ids"][0], plan)
    comparison = compare(subject, prompt, plan, progress)
    show(comparison, console)
    if json_path:
        _write_json(comparison.report | {"commit": arguments.commit, "flags": list(flags)}, json_path)
    if save_plot:
        save_plot(comparison, plot_path)
    for path in filter(None, (json_path, plot_path)):
        console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
    return comparison


def _outputs(arguments: argparse.Namespace) -> tuple[Path | None, Path | None]:
    """Looked at before anything runs: minutes of work should not end in a missing folder."""
    names = (
        arguments.json or (DEMO_JSON if arguments.demo else None),
        arguments.plot or (DEMO_PLOT if arguments.demo else None),
    )
    paths = [Path(name) if name else None for name in names]
    for path in filter(None, paths):
        if not path.resolve().parent.is_dir():
            raise BenchmarkError(f"cannot write {str(path)!r}: its folder does not exist.")
    return paths[0], paths[1]


def _plotter() -> Callable[[Comparison, Path], None]:
    """Looked for before anything runs, too; without a plot nothing needs matplotlib."""
    from turboquant.benchmark.plot import save_plot

    return save_plot


def _load(arguments: argparse.Namespace, progress: Progress) -> models.Subject:
    device = models.resolve_device(arguments.device)
    common = {"dtype": models.resolve_dtype(arguments.dtype, device), "device": device, "seed": arguments.seed}
    with_media = bool(arguments.image or arguments.video)
    if arguments.demo:
        with progress.task(f"loading {NAME} (the first time, dequantising it takes a minute)"):
            return models.load(demo_model(), name=NAME, with_media=with_media, **common)
    directory, gguf_file = models.find_model(arguments.model, arguments.gguf_file)
    with progress.task(f"loading {directory / (gguf_file or '')}"):
        return models.load(
            directory, gguf_file=gguf_file, random_weights=arguments.random_weights, with_media=with_media, **common
        )


def _check_balance(balance: bool | str, subject: models.Subject) -> None:
    if isinstance(balance, str):
        try:
            Calibration.load(balance).check_model(subject.model)
        except ValueError as error:
            raise BenchmarkError(f"--balance: {error}") from error


def _prompt(arguments: argparse.Namespace, subject: models.Subject) -> dict:
    if arguments.random_prompt:
        return inputs.random_prompt(subject, arguments.random_prompt, arguments.seed)
    if arguments.prompt_file:
        text = inputs.read_text(arguments.prompt_file)
    elif arguments.prompt is not None:
        text = arguments.prompt
    else:
        text = inputs.demo_prompt() if arguments.demo else DEFAULT_PROMPT
    return inputs.prepare(subject, text, arguments.image, arguments.video)


def _text(arguments: argparse.Namespace, subject: models.Subject) -> torch.Tensor | None:
    if not arguments.text_file:
        return None
    if subject.tokenizer is None:
        raise BenchmarkError(f"{subject.name} has no tokenizer: leave --text-file out.")
    return subject.tokenizer(inputs.read_text(arguments.text_file), return_tensors="pt")["input_ids"][0]


def _check_text(subject: models.Subject, text: torch.Tensor, plan: Plan) -> None:
    if (plan.text_prefix or 0) >= len(text):
        raise BenchmarkError(f"--text-prefix {plan.text_prefix} leaves nothing of a text of {len(text)} tokens to measure.")
    limit = getattr(subject.model.config.get_text_config(), "max_position_embeddings", None)
    if limit and len(text) > limit:
        raise BenchmarkError(f"the text's {len(text)} tokens exceed the {limit} positions of {subject.name}: shorten it.")


def _write_json(report: dict, path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
