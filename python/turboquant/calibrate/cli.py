# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import sys

PROG = "python -m turboquant.calibrate"


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    from turboquant.benchmark.errors import BenchmarkError
    from turboquant.benchmark.study import load_subject, read_texts, tidy_process
    from turboquant.calibrate import calibrate

    tidy_process(arguments.threads)
    try:
        subject = load_subject(arguments)
        texts = read_texts(subject, arguments.text, arguments.tokens)
        found = calibrate(subject.model, texts, subject.name)
        found.save(arguments.out)
    except (BenchmarkError, NotImplementedError, ValueError, OSError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    strongest = max(float(x.max() / x.min()) for x in found.balances.values())
    print(f"{arguments.out}: {len(found.balances)} layers of {subject.name}, from {found.tokens} tokens; channels differ by up to {strongest:.3g} x")
    return 0


def _parser() -> argparse.ArgumentParser:
    from turboquant.benchmark.study import add_model_arguments

    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Measures a model's balance vectors on a text and writes them, with some of its queries, as safetensors: TurboQuantCache(config, balance=FILE) takes "
        "them instead of the first prompt's.",
    )
    add_model_arguments(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="where to write, balance.safetensors say")
    return parser
