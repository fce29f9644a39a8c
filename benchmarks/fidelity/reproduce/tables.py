# SPDX-License-Identifier: Apache-2.0
"""The paper's experiments as Markdown."""

from __future__ import annotations

from fidelity.reproduce import bounds


def full(report: dict, where: str) -> str:
    parts = [f"[The run]({where})."]
    if "distortion" in report:
        parts.append(distortion(report["distortion"]))
    if "recall" in report:
        parts.append(recall(report["recall"]))
    if "needle" in report:
        parts.append(needle(report["needle"]))
    if "activations" in report:
        parts.append(activations(report["activations"]))
    return "\n\n".join(parts)


def distortion(rows: list[dict]) -> str:
    """MSE's error beside Lloyd-Max's and the bounds, and both quantisers' inner products beside theory."""
    lines = [
        "Random unit vectors: error of a vector, and `d E[error^2]` of inner products with random unit vectors, measured / theory.", "",
        "| d | bits | MSE: error | bounds | MSE: inner product | its slope | Prod: inner product | bounds | its slope |", "|---" * 9 + "|",
    ]  # fmt: skip
    by_kind = {(r["dim"], r["bits"], r["quantiser"]): r for r in rows}
    for (dim, bits, kind), mse in by_kind.items():
        if kind == "mse":
            prod = by_kind.get((dim, bits, "prod"))
            cells = [
                f"{dim:,}", str(bits), f"{mse['mse']:.5f} / {mse['theory_mse']:.5f}", _between(bounds.error(bits)), *_inner(mse), *_prod(prod),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _between(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.5f} to {ends[1]:.5f}"


def _prod(row: dict | None) -> list[str]:
    if row is None:
        return ["", "", ""]
    error, slope = _inner(row)
    return [error, _between(bounds.inner_product(row["bits"])), slope]


def _inner(row: dict) -> list[str]:
    return [f"{row['inner_product_error']:.4f} / {row['theory_inner_product_error']:.4f}", f"{row['inner_product_slope']:.4f} / {row['theory_slope']:.4f}"]


def recall(rows: list[dict]) -> str:
    first = rows[0]
    ks = list(first["recall"])
    lines = [
        f"Recall of the true nearest of {first['vectors']:,} token embeddings ({first['dim']} coordinates, {first['queries']:,} queries) among the k best:", "",
        f"| bits, quantiser | {' | '.join(f'k = {k}' for k in ks)} |", "|---" * (len(ks) + 1) + "|",
    ]  # fmt: skip
    for r in rows:
        cells = " | ".join(f"{r['recall'][k]:.3f}" for k in ks)
        lines.append(f"| {r['bits']}, {r['quantiser']} | {cells} |")
    return "\n".join(lines)


def needle(rows: list[dict]) -> str:
    """Found at how many depths, and the answer's log-likelihood a token, for each length."""
    lengths, variants = sorted({r["tokens"] for r in rows}), list(dict.fromkeys(r["variant"] for r in rows))
    lines = [
        "A needle in the novel, asked for at its end: found at how many of the depths, and the answer's log-likelihood a token:", "",
        f"| cache | {' | '.join(f'{n:,} tokens' for n in lengths)} |", "|---" * (len(lengths) + 1) + "|",
    ]  # fmt: skip
    for variant in variants:
        cells = []
        for length in lengths:
            part = [r for r in rows if r["variant"] == variant and r["tokens"] == length]
            mean = sum(r["log_likelihood"] for r in part) / max(len(part), 1)
            cells.append(f"{sum(r['found'] for r in part)} of {len(part)}, {mean:.2f}" if part else "")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def activations(rows: list[dict]) -> str:
    names = {
        "key_kurtosis": "kurtosis of what is coded, keys", "value_kurtosis": "... values",
        "kurtosis_of_a_random_direction": "... a random direction (the codebooks' law)",
        "query_share_of_1": "share of the queries' second moment in one direction", "query_share_of_4": "... in four",
        "weights_of_neighbours_correlate": "correlation of neighbours' attention weights, fringe left out",
    }  # fmt: skip
    lines = [f"Activations as the codec sees them, {rows[0]['tokens']:,} tokens of {rows[0]['text']}:", "", "| | mean of the layers | least | most |", "|---" * 4 + "|"]
    for key, name in names.items():
        x = [row[key] for row in rows]
        lines.append(f"| {name} | {sum(x) / len(x):.3f} | {min(x):.3f} | {max(x):.3f} |")
    return "\n".join(lines)
