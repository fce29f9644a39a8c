# SPDX-License-Identifier: Apache-2.0
"""A report as Markdown: the README's short form and the whole."""

from __future__ import annotations

import re
from collections import Counter

# In the README; the rest is in docs/fidelity.md.
SHOWN = (
    "fp8 e4m3", "turbo-attn 4/4 ring 128", "turbo-attn 4/4 ring 128 calibrated", "KIVI-4, groups of 64 keys", "KIVI-4 window 128", "KIVI-2 window 128",
    "paper MSE 4/4", "vLLM 4bit_nc skips 2+2 layers", "vLLM k8v4", "llama.cpp q8_0", "llama.cpp q4_0 Hadamard", "QuantizedCache 4 bits window 128",
    "vLLM int4_per_token_head", "bf16", "recipe 4/4", "recipe 3/3", "recipe 2/2",
    "recipe 4/4 fringe 4+28", "recipe 3/3 fringe 4+28", "recipe 2/2 fringe 4+28", "recipe 4/4 append",
)  # fmt: skip
MANY_TEXTS = 3  # fewer say little
ASIDE = ("ablation", "fringe")  # groups that neither the README nor the plot shows
# Repeated in tables over fewer texts, to compare with.
REFERENCES = ("recipe 4/4", "recipe 4/4 fringe 4+28", "recipe 3/3 fringe 4+28", "fp8 e4m3", "paper MSE 4/4", "sketch: as the product")
HEAD = (
    "| variant | bytes | mean KL | least to most | KL, 99 % | 99.9 % | 1 - TV | same top token | perplexity |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def short(report: dict, where: str) -> str:
    rows, texts = richest(report)
    rows = [row for row in rows if row["variant"] in SHOWN]
    targets = [t["met"] for t in report["targets"] if t["met"] is not None]
    measured = f"{rows[0]['model']}, {len(texts)} texts of {rows[0]['tokens']:,} tokens ({', '.join(texts)})"
    caption = (
        f"{measured}, everything coded from the first token on, teacher-forced ([the run]({where}), {device(report)}; "
        f"{sum(targets)} of {len(targets)} targets met, [all of it](docs/fidelity.md)):"
    )
    return f"{caption}\n\n{render_rows(rows)}"


def full(report: dict, where: str) -> str:
    rows, texts = whole(report)
    parts = [f"[The run]({where}), {device(report)}.", render_targets(report["targets"])]
    parts += [heading(rows[0]), render_rows([row for row in rows if row["group"] not in ASIDE])]
    if any(row["group"] == "ablation" for row in rows):
        shown = [row for row in rows if row["group"] == "ablation" or row["variant"] in REFERENCES]
        parts += [f"{heading(rows[0])}: parts of the recipe left out or changed, ideas", render_rows(shown)]
    grid = render_fringes(rows, least=2)
    if grid:
        parts += [f"{heading(rows[0])}: recipe 4/4, mean KL where the S first and the W newest tokens are kept in 16 bits", grid]
    groups: dict[tuple, list[dict]] = {}
    for row in report["variants"]:
        if (row["stress"], row["tokens"], row["texts"]) != ("none", rows[0]["tokens"], list(texts)):
            groups.setdefault((row["model"], row["stress"], row["tokens"], tuple(row["texts"])), []).append(row)
    for group in sorted(groups.values(), key=lambda rows: (rows[0]["stress"] != "none", rows[0]["tokens"], -len(rows[0]["texts"]))):
        own = [row for row in group if row["only_here"] or row["variant"] in REFERENCES]
        if any(row["only_here"] for row in own):
            parts += [heading(own[0]), render_rows(own)]
    if report["blocks"]:
        parts.append(render_blocks(report["blocks"], device(report, "blocks")))
    return "\n\n".join(parts)


def whole(report: dict) -> tuple[list[dict], tuple[str, ...]]:
    """The rows over most texts, without a stress and of 2,048 tokens where there are such, and the texts."""
    unplanted = [row for row in report["variants"] if row["stress"] == "none"] or report["variants"]
    plain = [row for row in unplanted if row["tokens"] == 2048] or unplanted
    texts = max((tuple(row["texts"]) for row in plain), key=len)
    return [row for row in plain if tuple(row["texts"]) == texts], texts


def richest(report: dict) -> tuple[list[dict], tuple[str, ...]]:
    """As `whole`, but without the rows that stand aside, and over the texts (MANY_TEXTS at least, if there are) that most of the rest saw."""
    by_texts: dict[tuple[str, ...], list[dict]] = {}
    for row in report["variants"]:
        if row["stress"] == "none" and row["tokens"] == 2048 and row["group"] not in ASIDE:
            by_texts.setdefault(tuple(row["texts"]), []).append(row)
    many = [texts for texts in by_texts if len(texts) >= MANY_TEXTS]
    if not many:
        return whole(report)
    texts = max(many, key=lambda texts: (len(by_texts[texts]), len(texts)))
    return by_texts[texts], texts


def heading(row: dict) -> str:
    planted = {"none": "", "k-bias": ", a key bias planted", "outlier": ", outlier channels planted"}[row["stress"]]
    return f"{row['model']}{planted}, {row['tokens']:,} tokens of: {', '.join(row['texts'])}"


def device(report: dict, kind: str = "cells") -> str:
    """Of the runs that the report's cells, or its "blocks", are of."""
    runs = [report["runs"][i] for i in sorted({cell["run"] for cell in report[kind]})]
    return ", ".join(sorted({f"{run['device']['name']}, torch {run['versions']['torch']}" for run in runs}))


def render_rows(rows: list[dict]) -> str:
    lines = [HEAD]
    for row in rows:
        kl = row["kl"]
        lines.append(
            f"| {row['variant']} | {row['bytes_per_token']['mean']:.4g} | {kl['mean']:.3g} | {kl['least']:.3g} to {kl['most']:.3g} "
            f"| {row['kl_p99']['mean']:.3g} | {row['kl_p999']['mean']:.3g} | {row['one_minus_tv']['mean']:.4f} | {100 * row['top1']['mean']:.1f} % "
            f"| x {row['perplexity_ratio']['mean']:.4f} |"
        )
    return "\n".join(lines)


def render_fringes(rows: list[dict], least: int = 1) -> str:
    """S down, W across, those with `least` cells; empty without a row of another fringe than the default."""
    kl = {(0, 0): row["kl"]["mean"] for row in rows if row["variant"] == "recipe 4/4"}
    for row in rows:
        found = re.fullmatch(r"recipe 4/4 fringe (\d+)\+(\d+)", row["variant"])
        if found:
            kl[int(found[1]), int(found[2])] = row["kl"]["mean"]
    for axis in (0, 1):
        count = Counter(at[axis] for at in kl)
        kl = {at: value for at, value in kl.items() if count[at[axis]] >= least}
    if len(kl) < 3:
        return ""
    recents = sorted({recent for _, recent in kl})
    lines = [f"| S | {' | '.join(f'W = {recent}' for recent in recents)} |", "|---" * (len(recents) + 1) + "|"]
    for first in sorted({first for first, _ in kl}):
        cells = (f"{kl[first, recent]:.3g}" if (first, recent) in kl else "" for recent in recents)
        lines.append(f"| {first} | {' | '.join(cells)} |")
    return "\n".join(lines)


def render_targets(targets: list[dict]) -> str:
    lines = ["| target (mean KL) | at most | measured | |", "|---|---|---|---|"]
    for t in targets:
        verdict = "not measured" if t["measured"] is None else "met" if t["met"] else "missed"
        measured = "" if t["measured"] is None else f"{t['measured']:.{3 if t['measured'] < 1 else 5}g}"
        lines.append(f"| {t['what']} | {t['bound']:.3g} | {measured} | {verdict} |")
    return "\n".join(lines)


def render_blocks(cells: list[dict], devices: str) -> str:
    """Over the texts: mean, and least to most, of each variant's figures of its layers."""
    by_variant: dict[tuple[int, str], list[dict]] = {}
    for cell in cells:
        by_variant.setdefault((cell["tokens"], cell["variant"]), []).append(cell)
    rows = []
    for (tokens, variant), part in by_variant.items():
        errors = [sorted(cell["block_errors"]) for cell in part]
        rms = [(sum(e * e for e in layers) / len(layers)) ** 0.5 for layers in errors]
        median, worst = [layers[len(layers) // 2] for layers in errors], [layers[-1] for layers in errors]
        where = part[worst.index(max(worst))]["text"]
        cells_of_row = f"{_mean(rms)} | {_range(rms)} | {_mean(median)} | {_range(median)} | {max(worst):.4f} ({where}) | {_range(worst)}"
        rows.append((-tokens, sum(rms) / len(rms), f"| {variant} | {len(part)} | {cells_of_row} |"))
    texts, tokens = sorted({cell["text"] for cell in cells}), sorted({cell["tokens"] for cell in cells})
    lines = [
        "Relative error of the attention blocks' outputs after W_o, with the reference's own activations: root mean square, median and worst of the layers, each over texts of "
        f"{' or '.join(f'{n:,}' for n in tokens)} tokens ({', '.join(texts)}; {devices}):",
        "", "| variant | texts | rms | least to most | median layer | least to most | worst layer (text) | least to most |", "|---" * 8 + "|",
    ]  # fmt: skip
    return "\n".join(lines + [line for *_, line in sorted(rows)])


def _mean(x: list[float]) -> str:
    return f"{sum(x) / len(x):.4f}"


def _range(x: list[float]) -> str:
    return f"{min(x):.4f} to {max(x):.4f}"
