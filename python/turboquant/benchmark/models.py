# SPDX-License-Identifier: Apache-2.0
"""Loads the model that is measured: a model directory, a GGUF file, or random weights of a config."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from turboquant.benchmark.errors import BenchmarkError
from turboquant.benchmark.gguf_file import read_once

REMEDY = (
    "Give a folder with config.json, weights and tokenizer (as `save_pretrained` writes it or `hf download NAME --local-dir DIR` "
    "fetches it), or a .gguf file."
)


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured. No tokenizer: the model has random weights and random tokens are its prompt."""

    name: str
    model: PreTrainedModel
    tokenizer: object | None
    processor: object | None = None


def find_model(path: str | Path, gguf_file: str | None = None) -> tuple[Path, str | None]:
    """The directory and, where the model is a GGUF file, its name in there."""
    path = Path(path).expanduser()
    if not path.exists():
        raise BenchmarkError(f"model {str(path)!r} does not exist. {REMEDY}")
    if path.is_file():
        if path.suffix != ".gguf":
            raise BenchmarkError(f"model {str(path)!r} is a file, but not a .gguf one. {REMEDY}")
        return path.parent, path.name
    found = sorted(file.name for file in path.glob("*.gguf"))
    if gguf_file is not None:
        if not (path / gguf_file).is_file():
            raise BenchmarkError(f"there is no {gguf_file!r} in {str(path)!r}; GGUF files there: {', '.join(found) or 'none'}.")
        return path, gguf_file
    if (path / "config.json").is_file():
        return path, None
    if len(found) == 1:
        return path, found[0]
    if found:
        raise BenchmarkError(f"{str(path)!r} holds {len(found)} GGUF files; choose one with --gguf-file: {', '.join(found)}.")
    raise BenchmarkError(f"{str(path)!r} holds neither a config.json nor a .gguf file. {REMEDY}")


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]


def resolve_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BenchmarkError(f"--device {name!r}: {error}") from error
    if device.type not in ("cpu", "cuda"):
        raise BenchmarkError(f"--device {name!r}: only cpu and cuda are measured")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError(f"--device {name!r}: this torch ({torch.__version__}) finds no usable GPU; use --device cpu.")
    return device


def load(
    path: str | Path,
    *,
    gguf_file: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device = torch.device("cpu"),
    random_weights: bool = False,
    seed: int = 0,
    with_media: bool = False,
    name: str | None = None,
) -> Subject:
    directory, gguf_file = find_model(path, gguf_file)
    label = name or (gguf_file.removesuffix(".gguf") if gguf_file else directory.resolve().name)
    source = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        with read_once() if gguf_file else contextlib.nullcontext():
            config = AutoConfig.from_pretrained(directory, **source)
            kind = _model_class(config, with_media, label)
            if random_weights:
                torch.manual_seed(seed)
                with device:  # drawn where they are used: a large model takes minutes on a CPU
                    model = kind.from_config(config, dtype=dtype)
            else:
                model = kind.from_pretrained(directory, dtype=dtype, **source)
            processor = AutoProcessor.from_pretrained(directory) if with_media else None
            tokenizer = getattr(processor, "tokenizer", None) or _tokenizer(directory, source, random_weights)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BenchmarkError(f"cannot load the model in {str(directory)!r}: {error}") from error
    return Subject(label, model.to(device).eval(), tokenizer, processor)


def _model_class(config: object, with_media: bool, label: str) -> type:
    takes_images = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if with_media and not takes_images:
        raise BenchmarkError(f"{label} ({config.model_type}) is a text-only model: it takes no --image and no --video.")
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not with_media:
        return AutoModelForCausalLM
    if takes_images:
        return AutoModelForImageTextToText
    raise BenchmarkError(f"{label} ({config.model_type}) is not a model that generates text; transformers knows no causal LM for it.")


def _tokenizer(directory: Path, source: dict, optional: bool) -> object | None:
    try:
        return AutoTokenizer.from_pretrained(directory, **source)
    except (OSError, ValueError, KeyError):
        if optional:
            return None
        raise
