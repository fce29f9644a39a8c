# SPDX-License-Identifier: Apache-2.0
"""Turns the command line's prompt, images and videos into the tensors that `generate` takes."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch

from turboquant.benchmark.errors import BenchmarkError
from turboquant.benchmark.models import Subject
from turboquant.benchmark.video import decode_with_pyav

# The shipped texts: written for this project, so anyone may use them. Fidelity is also tested on them.
TEXTS = ("expedition.md", "harbour.md", "scheduler.md", "workshop.md")


def shipped_text(name: str) -> str:
    return (resources.files("turboquant.benchmark") / "data" / name).read_text(encoding="utf-8")


def demo_prompt() -> str:
    return shipped_text("expedition.md") + "\n" + shipped_text("expedition_questions.md")


def read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise BenchmarkError(f"cannot read {path!r}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"{path!r} is not UTF-8 text ({error.reason} at byte {error.start}).") from error


def prepare(subject: Subject, prompt: str, images: list[str], videos: list[str]) -> dict:
    if images or videos:
        return _multimodal(subject, prompt, images, videos)
    if subject.tokenizer is None:
        raise BenchmarkError(f"{subject.name} has no tokenizer: leave --prompt out and give --random-prompt N.")
    device = subject.model.device
    if getattr(subject.tokenizer, "chat_template", None):
        inputs = subject.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        inputs = subject.tokenizer(prompt, return_tensors="pt")
    tokens = inputs["input_ids"]
    if tokens.shape[1] == 0:
        raise BenchmarkError("the prompt is empty.")
    return {"input_ids": tokens.to(device), "attention_mask": torch.ones_like(tokens).to(device)}


def random_prompt(subject: Subject, count: int, seed: int) -> dict:
    vocabulary = subject.model.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (1, count), generator=torch.Generator().manual_seed(seed)).to(subject.model.device)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def check_length(subject: Subject, inputs: dict, max_new_tokens: int) -> None:
    prompt_tokens = inputs["input_ids"].shape[1]
    limit = getattr(subject.model.config.get_text_config(), "max_position_embeddings", None)
    if limit and prompt_tokens + max_new_tokens > limit:
        raise BenchmarkError(
            f"{prompt_tokens} prompt tokens and --max-new-tokens {max_new_tokens} exceed the {limit} positions of {subject.name}: "
            "shorten one of them."
        )


def _multimodal(subject: Subject, prompt: str, images: list[str], videos: list[str]) -> dict:
    processor = subject.processor
    for kind, files, part in (("image", images, "image_processor"), ("video", videos, "video_processor")):
        if files and getattr(processor, part, None) is None:
            raise BenchmarkError(f"{subject.name} takes no --{kind}: its processor has no {part}.")
        for file in files:
            if not Path(file).is_file():
                raise BenchmarkError(f"--{kind} {file!r} does not exist.")
    if not getattr(processor, "chat_template", None):
        raise BenchmarkError(f"{subject.name} has no chat template, which says where images and videos stand in the prompt.")
    if videos:
        decode_with_pyav(processor)
    content = [{"type": "image", "path": file} for file in images] + [{"type": "video", "path": file} for file in videos]
    content.append({"type": "text", "text": prompt})
    try:
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    except ImportError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "a decoder library is missing"
        raise BenchmarkError(f"cannot decode {', '.join(images + videos)}: {reason}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise BenchmarkError(f"cannot decode {', '.join(images + videos)}: {error}") from error
    inputs = inputs.to(subject.model.device)
    return {
        key: value.to(subject.model.dtype) if torch.is_tensor(value) and value.is_floating_point() else value
        for key, value in inputs.items()
    }
