# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

PROG = "python -m turboquant.verify"
SHOWN = 10


def main(argv: list[str] | None = None) -> int:
    """0: every head below the threshold; 1: one is not; 2: nothing could be measured."""
    arguments = _parser().parse_args(argv)
    from turboquant.benchmark.errors import BenchmarkError
    from turboquant.benchmark.study import load_subject, read_texts, tidy_process
    from turboquant.calibration import Calibration
    from turboquant.verify import verify

    tidy_process(arguments.threads)
    try:
        balance = Calibration.load(arguments.balance) if arguments.balance else not arguments.no_balance
        subject = load_subject(arguments)
        if isinstance(balance, Calibration):
            balance.check_model(subject.model)
        texts = read_texts(subject, arguments.text, arguments.tokens)
        errors = verify(subject.model, texts, arguments.k_bits, arguments.v_bits, balance)
    except (BenchmarkError, NotImplementedError, ValueError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    bad = [e for e in errors if not e.output <= arguments.threshold]
    _show(errors, bad, arguments, subject.name, sum(len(text) for text in texts))
    if arguments.json:
        report = {
            "schema": 1, "model": subject.name, "k_bits": arguments.k_bits, "v_bits": arguments.v_bits, "threshold": arguments.threshold,
            "balance": arguments.balance or not arguments.no_balance, "tokens": [len(text) for text in texts],
            "passed": not bad, "heads": [e.as_dict() for e in errors],
        }  # fmt: skip
        Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n")
    return 1 if bad else 0


def _show(errors: list, bad: list, arguments: argparse.Namespace, name: str, tokens: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    title = f"{name}, K{arguments.k_bits}/V{arguments.v_bits}, {tokens} tokens: the {min(SHOWN, len(errors))} worst of {len(errors)} heads"
    print(title)
    table = Table(box=box.ASCII2)
    for column in ("layer", "KV head", "output", "attention KL", "keys", "values", ""):
        table.add_column(column, justify="right")
    for e in errors[: max(SHOWN, len(bad))]:
        mark = "above the threshold" if e in bad else ""
        table.add_row(str(e.layer), str(e.head), f"{e.output:.4f}", f"{e.kl:.5f}", f"{e.keys:.4f}", f"{e.values:.4f}", mark)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    median = sorted(e.output for e in errors)[len(errors) // 2] if errors else 0.0
    verdict = f"{len(bad)} above" if bad else "all below"
    print(f"relative error of the attention output: median {median:.4f}; {verdict} the threshold {arguments.threshold:g}")


def _parser() -> argparse.ArgumentParser:
    from turboquant.benchmark.study import add_model_arguments

    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Runs a model over a text, codes each layer's keys and values as TurboQuantCache would (without a fringe), and says per layer "
        "and KV head what attention loses. Exit code 1 where a head is above the threshold.",
    )
    add_model_arguments(parser)
    parser.add_argument("--k-bits", type=int, choices=(2, 3, 4), default=4)
    parser.add_argument("--v-bits", type=int, choices=(2, 3, 4), default=4)
    parser.add_argument("--threshold", type=float, default=0.3, metavar="E", help="of the output's relative error (default: %(default)s)")
    parser.add_argument("--balance", metavar="FILE", help="balance vectors from python -m turboquant.calibrate")
    parser.add_argument("--no-balance", action="store_true", help="leave the keys' channels as they are")
    parser.add_argument("--json", metavar="FILE", help="write every head's numbers")
    return parser
