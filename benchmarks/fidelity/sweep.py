# SPDX-License-Identifier: Apache-2.0
"""The loop over texts and variants of one model. A cell is one JSON file; one that is there is not measured again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fidelity.attention import Recorder, Study, logits
from fidelity.blocks import block_errors
from fidelity.calibration import Calibration
from fidelity.codec import Coded, Layer
from fidelity.metrics import compare, summary
from fidelity.texts import Text, read
from fidelity.variants import Context, Variant
from turboquant.benchmark.models import Subject


@dataclass(frozen=True)
class Plan:
    subject: Subject
    stress: str
    cells: Path
    facts: dict[str, object]  # of the run: device, versions, commit
    tokens: int | None = None  # of every text, instead of its own


def sweep(plan: Plan, texts: Sequence[Text], rows: Sequence[Variant], say: Callable[[str], None] = print) -> None:
    model = plan.subject.model
    context = _context(plan)
    for text in texts:
        left = [row for row in rows if not cell_path(plan, text, row).exists()]
        if not left:
            continue
        tokens = read(plan.subject.tokenizer, text, plan.tokens)
        reference = logits(model, tokens, None)
        for row in left:
            began = time.perf_counter()
            try:
                study = row.build(context)
                counter = ByteCounter(study, context)
                other = logits(model, tokens, counter.study)
            except ImportError as error:
                say(f"{text.name}: {row.name}: left out, {error}")
                continue
            measured = summary(compare(reference, other, tokens))
            cell = {**_names(plan, text, row), **measured, **counter.per_token(len(tokens))}
            del other
            cell |= {"seconds": round(time.perf_counter() - began, 2), "facts": plan.facts}
            write(cell_path(plan, text, row), cell)
            say(f"{text.name}: {row.name}: KL {cell['kl']:.5f}, {cell['bytes_per_token']:.1f} B, {cell['seconds']:.1f} s")


class ByteCounter:
    """Wraps a study's codec and adds up what its layers store; layers that are skipped, and windows, at 16 bits."""

    def __init__(self, study: Study, context: Context) -> None:
        self.coded, self.heads, self.context, self.inner = 0, 0, context, study
        self.study = Study(self._codec, study.keys, study.values, study.skip)

    def _codec(self, layer: Layer) -> Coded:
        coded = self.inner.codec(layer)
        self.coded += coded.nbytes
        self.heads += layer.keys.shape[0]
        return coded

    def per_token(self, tokens: int) -> dict[str, float]:
        """Bytes a token and KV head, mean over layers: of the codes with all that belongs to them, and of everything."""
        half = 2 * self.context.head_dim  # bytes of a 16-bit vector
        skipped = len(self.inner.skip)
        layers = self.context.layers
        codes = self.coded / max(self.heads, 1) / tokens
        window = (self.inner.keys.tokens() + self.inner.values.tokens()) * half / tokens
        total = ((codes + window) * (layers - skipped) + 2 * half * skipped) / layers
        return {"code_bytes_per_token": round(codes, 4), "bytes_per_token": round(total, 4)}


def sweep_blocks(plan: Plan, texts: Sequence[Text], rows: Sequence[Variant], say: Callable[[str], None] = print) -> None:
    """The attention blocks' errors, with the reference's own activations: cells of their own beside the others."""
    context = _context(plan)
    for text in texts:
        left = [row for row in rows if not cell_path(plan, text, row, "blocks").exists()]
        if not left:
            continue
        recorder = Recorder()
        logits(plan.subject.model, read(plan.subject.tokenizer, text, plan.tokens), None, recorder)
        for row in left:
            try:
                errors = block_errors(recorder, row.build(context))
            except ImportError as error:
                say(f"{text.name}: {row.name}: left out, {error}")
                continue
            cell = {**_names(plan, text, row), "block_errors": [round(x, 6) for x in errors], "facts": plan.facts}
            write(cell_path(plan, text, row, "blocks"), cell)
            say(f"{text.name}: {row.name}: worst block {max(errors):.4f}")


def _context(plan: Plan) -> Context:
    config = plan.subject.model.config.get_text_config()
    return Context(config.num_hidden_layers, _head_dim(config), Calibration(plan.subject).get)


def _names(plan: Plan, text: Text, row: Variant) -> dict[str, object]:
    return {
        "model": plan.subject.name, "stress": plan.stress, "text": text.name, "text_sha256": text.sha256(),
        "tokens": plan.tokens or text.tokens, "variant": row.name, "group": row.group,
    }  # fmt: skip


def cell_path(plan: Plan, text: Text, row: Variant, kind: str = "logits") -> Path:
    parts = [plan.subject.name, plan.stress, text.name, str(plan.tokens or text.tokens), row.name]
    parts += [] if kind == "logits" else [kind]
    return plan.cells / ("__".join(parts).replace("/", "-").replace(" ", "_") + ".json")


def write(path: Path, data: dict) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".part")
    half.write_text(json.dumps(data))
    half.rename(path)


def _head_dim(config: object) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def use_threads(count: int | None) -> None:
    if count:
        torch.set_num_threads(count)
