# SPDX-License-Identifier: Apache-2.0
"""Runs the paper's experiments and writes one JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from fidelity.reproduce import activations, distortion, needle, recall
from fidelity.variants import Context, variants
from turboquant.benchmark.models import Subject

NEEDLE_VARIANTS = (
    None, "recipe 4/4 fringe 4+28", "recipe 3/3 fringe 4+28", "recipe 2/2 fringe 4+28", "recipe 4/4", "recipe 3/3", "recipe 2/2",
    "KIVI-2 window 128", "paper MSE 4/4", "paper MSE 3/3", "paper MSE 2/2",
)  # fmt: skip


def run(parts: list[str], subject: Subject, facts: dict, path: Path, lengths: list[int], depths: list[float], say: Callable[[str], None]) -> None:
    """A part that the file has already is kept with its facts, unless it is asked for."""
    report = json.loads(path.read_text()) if path.exists() else {"benchmark": "paper", "facts": {}}
    report["facts"] |= {part: facts for part in parts}
    if "distortion" in parts:
        report["distortion"] = distortion.measure()
    if "recall" in parts:
        report["recall"] = recall.measure(subject.model.get_input_embeddings().weight.cpu())
    if "activations" in parts:
        report["activations"] = activations.measure(subject)
    if "needle" in parts:
        report["needle"] = []
        context = Context(subject.model.config.num_hidden_layers, 0, dict)
        for length in lengths:
            for depth in depths:
                for name in NEEDLE_VARIANTS:
                    study = variants()[name].build(context) if name else None
                    row = {"variant": name or "fp32", **needle.measure(subject, study, length, depth)}
                    report["needle"].append(row)
                    say(str(row))
                    path.write_text(json.dumps(report, indent=1) + "\n")
    path.write_text(json.dumps(report, indent=1) + "\n")
