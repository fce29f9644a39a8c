# SPDX-License-Identifier: Apache-2.0
"""The texts that are measured: files of data/, cut to a number of tokens. data/README.md says where they come from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from turboquant.benchmark.inputs import TEXTS as SHIPPED
from turboquant.benchmark.inputs import shipped_text

FOLDER = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Text:
    name: str
    tokens: int
    kind: str

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.txt"

    def sha256(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]


SHORT = 2048
TEXTS = {
    text.name: text
    for text in (
        Text("prose", SHORT, "narrative prose, English, 1817"),
        Text("code", SHORT, "C++ and Python"),
        Text("dialogue", SHORT, "spoken dialogue in a novel, English, 1811"),
        Text("german", SHORT, "German prose"),
        Text("law", SHORT, "legal English, 1787"),
        Text("table", SHORT, "JSON of measurements: structure and numbers"),
        Text("novel", 8000, "a novel's first chapters, English, 1813; the long one"),
    )
}


def read(tokenizer: object, text: Text, tokens: int | None = None) -> torch.Tensor:
    """The text's first tokens, [tokens]."""
    wanted = tokens or text.tokens
    found = tokenizer(text.path.read_text(encoding="utf-8"), return_tensors="pt")["input_ids"][0]
    if len(found) < wanted:
        raise ValueError(f"{text.path.name} has {len(found)} tokens of this tokenizer, {wanted} are needed: pass --tokens")
    return found[:wanted]


def calibration(tokenizer: object, tokens: int = SHORT) -> torch.Tensor:
    """The package's own four texts in turn, none of which is measured."""
    pieces = [tokenizer(shipped_text(name), return_tensors="pt")["input_ids"][0][: tokens // len(SHIPPED)] for name in SHIPPED]
    return torch.cat(pieces)
