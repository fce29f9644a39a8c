# SPDX-License-Identifier: Apache-2.0
"""The rows of the GPU benchmark: shapes, what they must read, and the targets they are held to."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

PAGE_TOKENS = 64
FRINGE = (4, 28)  # first and newest tokens that are kept in 16 bits, where a row has a fringe
BIG = 256 << 20  # bytes of pages from which a row is bound by bandwidth alone


@dataclass(frozen=True)
class Target:
    """`what` (report.py: VALUES) is at least or at most `bound`; `of` names the row it is relative to."""

    what: str
    at_least: float | None = None
    at_most: float | None = None
    of: str | None = None


@dataclass(frozen=True)
class Row:
    """One shape of one verb: attend, append (attend_encode: attend, then encode of the same token) or encode."""

    name: str
    lengths: tuple[int, ...]
    verb: str = "attend"
    q_heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    k_bits: int = 4
    v_bits: int = 4
    queries: int = 1  # tokens of the call, a sequence
    window: int = 0
    fringe: bool = False
    metric: bool = False  # what is encoded, is with a key metric, as a cache's prefill and steps are
    targets: tuple[Target, ...] = ()

    @property
    def format(self) -> tuple[int, int, int, int]:
        return self.head_dim, self.k_bits, self.v_bits, self.kv_heads

    @property
    def max_pages(self) -> int:
        """A sequence, the call's own tokens included."""
        return -(-(max(self.lengths) + self.queries) // PAGE_TOKENS)


def page_bytes(head_dim: int, k_bits: int, v_bits: int) -> int:
    """Of one KV head, as include/turboquant/format.h lays a page out."""
    codes = PAGE_TOKENS * head_dim * (k_bits + v_bits) // 8
    used = codes + 2 * 2 * PAGE_TOKENS + head_dim + 2
    return -(-used // 128) * 128


def history_bytes(row: Row) -> float:
    """What the row's calls need of history: tokens that a query sees, in pages or in 16 bits.

    A token in a page counts for 1/64 of it, so reading a page's unused slots earns nothing.
    """
    page = page_bytes(row.head_dim, row.k_bits, row.v_bits) / PAGE_TOKENS
    total = 0.0
    for length in row.lengths:
        seen = min(length, row.window - 1) if row.window else length
        first = max(0, min(seen, FRINGE[0] - (length - seen))) if row.fringe else 0
        recent = min(FRINGE[1], seen - first) if row.fringe else 0
        total += (seen - first - recent) * page + (first + recent) * 4 * row.head_dim
    return total * row.kv_heads


def vector_bytes(row: Row) -> int:
    """bf16 keys and values of the call's own tokens."""
    tokens = len(row.lengths) * row.queries
    return tokens * row.kv_heads * row.head_dim * 2 * 2


def needed_bytes(row: Row) -> float:
    """What the row's verb must read and write: the numerator of every GB/s."""
    if row.verb == "encode":
        page = page_bytes(row.head_dim, row.k_bits, row.v_bits) / PAGE_TOKENS
        return vector_bytes(row) + len(row.lengths) * row.queries * page * row.kv_heads
    return history_bytes(row)


def dense_bytes(row: Row) -> int:
    """The same tokens in a bf16 cache without padding."""
    return sum(length + row.queries for length in row.lengths) * row.kv_heads * row.head_dim * 2 * 2


def _unequal() -> tuple[int, ...]:
    numbers = random.Random(7)
    return tuple(numbers.randint(1250, 5000) for _ in range(16))


def _ratio(bound: float) -> Target:
    return Target("ratio_to_cudnn", at_least=bound)


def _share(bound: float) -> Target:
    return Target("share_of_copy", at_least=bound)


def _times(bound: float, of: str) -> Target:
    return Target("time_over", at_most=bound, of=of)


def _equal(sequences: int, tokens: int, *targets: Target, **more) -> Row:
    return Row(f"{sequences} x {tokens:,}", (tokens,) * sequences, targets=targets, **more)


def _main_rows() -> list[Row]:
    unequal = _unequal()
    same_total = (sum(unequal) // len(unequal),) * len(unequal)
    return [
        _equal(32, 11264, _ratio(3.45), _share(0.95)),
        _equal(8, 11264, _ratio(3.3)),
        _equal(1, 2048, _ratio(1.25)),
        _equal(1, 11264, _ratio(2.3)),
        _equal(1, 32768, _ratio(2.7)),
        _equal(1, 131072, _ratio(3.3)),
        _equal(64, 2048, _ratio(3.4)),
        _equal(128, 1024, _ratio(3.0)),
        _equal(256, 512, _ratio(3.0)),
        Row("16 equal lengths, the same total", same_total),
        Row(
            "16 of 1,250 to 5,000",
            unequal,
            targets=(Target("rate_over", at_least=0.85, of="16 equal lengths, the same total"),),
        ),
    ]


def _with_fringe(row: Row) -> Row:
    longest = max(row.lengths)
    bound = 1.03 if longest >= 11264 else 1.08 if longest >= 2048 else None
    targets = (_times(bound, row.name),) if bound else ()
    return replace(row, name=f"{row.name}, fringe", fringe=True, targets=targets)


def _with_metric(row: Row) -> Row:
    return replace(row, name=f"{row.name}, key metric", metric=True, targets=())


def _bit_rows() -> list[Row]:
    """Where no ratio is set, the one of 4/4 bits times what the page is smaller."""
    asked = {(3, 3): 4.4, (2, 2): 6.0}
    rows = []
    for k_bits, v_bits in ((3, 3), (2, 2), (4, 3), (3, 4), (4, 2), (2, 4)):
        scaled = 3.45 * page_bytes(128, 4, 4) / page_bytes(128, k_bits, v_bits)
        bound = asked.get((k_bits, v_bits), round(scaled, 2))
        row = _equal(32, 11264, _ratio(bound), k_bits=k_bits, v_bits=v_bits)
        rows.append(replace(row, name=f"{k_bits}/{v_bits} bits, 32 x 11,264"))
    return rows


def _big(name: str, group: int, kv_heads: int, head_dim: int, *targets: Target) -> Row:
    """At least BIG bytes of pages, in sequences of 11,264 tokens."""
    sequence = 176 * kv_heads * page_bytes(head_dim, 4, 4)
    lengths = (11264,) * -(-BIG // sequence)
    return Row(name, lengths, q_heads=group * kv_heads, kv_heads=kv_heads, head_dim=head_dim, targets=targets)


def _head_rows() -> list[Row]:
    dims = [(64, 3, True), (64, 4, True), (80, 4, False), (96, 4, True), (192, 4, True), (256, 4, True)]
    groups = [(1, 8, True), (2, 8, True), (4, 8, True), (7, 4, True), (8, 8, True), (16, 4, True), (32, 2, False)]
    return [
        *(_big(f"head_dim {d}, G = {g}", g, 8, d, *([_share(0.85)] if held else [])) for d, g, held in dims),
        *(_big(f"G = {g}", g, kv, 128, *([_share(0.85)] if held else [])) for g, kv, held in groups),
    ]


def _query_rows() -> list[Row]:
    rows = []
    for base in ((32, 11264), (8, 11264), (64, 2048)):
        for queries, bound in ((2, 1.15), (4, 1.3), (8, 1.6)):
            row = _equal(*base, queries=queries)
            rows.append(replace(row, name=f"{row.name}, {queries} queries", targets=(_times(bound, row.name),)))
    return rows


def _other_rows() -> list[Row]:
    rows = []
    for sequences in (1, 32):
        short, long = _equal(sequences, 1024), _equal(sequences, 32768, window=1024)
        rows += [short, replace(long, name=f"{long.name}, window 1,024", targets=(_times(1.5, short.name),))]
    # In the middle of a page: 63 of 64 appends are not a page's first.
    attend = replace(_equal(32, 11232), name="32 x 11,232, fringe", fringe=True)
    append = replace(attend, name="append of a token, 32 sequences", verb="append", targets=(Target("extra_us", at_most=2.0, of=attend.name),))
    encode = Row("encode of a prefill, 8 x 8,192", (0,) * 8, verb="encode", queries=8192, fringe=True, targets=(_share(0.75),))
    rows += [attend, append, encode, _with_metric(append), _with_metric(encode)]
    for queries in (512, 2048):
        prefill = (Target("ratio_to_flash", at_least=0.8), Target("workspace_mb", at_most=64.0))
        rows.append(Row(f"{queries:,} queries over 32,768", (32768,), queries=queries, targets=prefill))
    return rows


def rows() -> list[Row]:
    """Every row, those of one page format together where that is possible."""
    main = _main_rows()
    return [*main, *map(_with_fringe, main), *_query_rows(), *_other_rows(), *_bit_rows(), *_head_rows()]
