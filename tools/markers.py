# SPDX-License-Identifier: Apache-2.0
"""The part of a document between two lines, which a tool writes."""


def split(document: str, begin: str, end: str) -> tuple[str, str, str]:
    """The document up to its line `begin`, what follows, and the rest from its line `end` on."""
    before, found_begin, rest = document.partition(begin)
    between, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise SystemExit(f"a document has lost its markers {begin.strip()} and {end.strip()}")
    return before + begin, between, end + after
