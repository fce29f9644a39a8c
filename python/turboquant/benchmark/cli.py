# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import os
import sys

PROG = "python -m turboquant.benchmark"
NEEDS = "the benchmark needs more packages: pip install 'turboquant[benchmark]'"


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    # Models are given as files; nothing here asks a hub.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from turboquant.benchmark.errors import BenchmarkError

    try:
        from turboquant.benchmark import run

        run.run(arguments, sys.argv[1:] if argv is None else argv)
    except ModuleNotFoundError as error:
        print(f"{PROG}: {error}; {NEEDS}", file=sys.stderr)
        return 2
    except (BenchmarkError, NotImplementedError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROG}: stopped", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Runs one model twice, with transformers' own cache and with TurboQuantCache, and reports cache bytes, peak memory, speed, "
        "the first differing token, and the KL divergence of the next-token distributions.",
    )
    what = parser.add_argument_group("model")
    which = what.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", metavar="PATH", help="a model directory, a directory with a GGUF file, or a .gguf file")
    which.add_argument("--demo", action="store_true", help="SmolLM2-135M-Instruct on a text of ours; writes ./demo-report.json and .png")
    what.add_argument("--gguf-file", metavar="NAME", help="which GGUF file of the directory")
    what.add_argument("--random-weights", action="store_true", help="weights from --seed; the directory needs only a config.json")
    what.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="auto: float32 on a CPU, else bfloat16")
    what.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    what.add_argument("--threads", type=_positive, metavar="N", help="CPU threads of torch (default: torch's own choice)")

    prompt = parser.add_argument_group("prompt")
    source = prompt.add_mutually_exclusive_group()
    source.add_argument("--prompt", metavar="TEXT")
    source.add_argument("--prompt-file", metavar="FILE", help="UTF-8 text")
    source.add_argument("--random-prompt", type=_positive, metavar="N", help="N random tokens, where the model has no tokenizer")
    prompt.add_argument("--image", action="append", default=[], metavar="FILE", help="for models that take images; may be repeated")
    prompt.add_argument("--video", action="append", default=[], metavar="FILE", help="for models that take videos; may be repeated")
    prompt.add_argument("--max-new-tokens", type=_positive, default=64, metavar="N", help="(default: %(default)s)")
    prompt.add_argument("--seed", type=int, default=0, help="of random weights and prompts (default: %(default)s)")

    cache = parser.add_argument_group("TurboQuantCache")
    cache.add_argument("--k-bits", type=_bits, default=4, metavar="B", help="2, 3 or 4 (default: %(default)s)")
    cache.add_argument("--v-bits", type=_bits, default=4, metavar="B", help="2, 3 or 4 (default: %(default)s)")
    cache.add_argument("--fringe", type=_fringe, default=(4, 28), metavar="S,W", help="first S and newest W tokens in 16 bits (default: 4,28; 0,0: none)")
    balance = cache.add_mutually_exclusive_group()
    balance.add_argument("--balance", default=True, metavar="FILE", help="balance vectors from python -m turboquant.calibrate (default: the first prompt's)")
    balance.add_argument("--no-balance", dest="balance", action="store_false", help="leave the keys' channels as they are")

    how = parser.add_argument_group("measurement")
    how.add_argument("--repeats", type=_positive, default=2, metavar="N", help="timed runs of each cache (default: %(default)s)")
    how.add_argument("--static", action="store_true", help="caches of fixed capacity, whose steps generate compiles on a GPU; the baseline is StaticCache")
    how.add_argument("--baseline-attention", choices=("auto", "default", "flash"), default="auto", help="backend of the baseline's SDPA; auto: the faster one, on a GPU (default: %(default)s)")
    how.add_argument("--longest", action="store_true", help="look for the longest context that fits (on a GPU; takes about a minute)")
    how.add_argument("--text-file", metavar="FILE", help="teacher-forced on this text (default: on the prompt)")
    how.add_argument("--text-prefix", type=_positive, metavar="N", help="tokens of the text that are prefilled, not measured (default: half)")
    how.add_argument("--chunk", type=_count, default=16, metavar="N", help="the text's tokens a call; 1 is decoding to the letter, 0 leaves the text out (default: %(default)s)")

    out = parser.add_argument_group("output")
    out.add_argument("--json", metavar="FILE", help="write the report")
    out.add_argument("--commit", metavar="NAME", help="of the sources, for the report")
    out.add_argument("--plot", metavar="FILE", help="write a PNG of bytes, speed and KL")
    return parser


def _bits(text: str) -> int:
    if text not in ("2", "3", "4"):
        raise argparse.ArgumentTypeError(f"{text!r} bits are not supported; choose 2, 3 or 4")
    return int(text)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _fringe(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not S,W: two counts of tokens, such as 4,28")
    return int(parts[0]), int(parts[1])
