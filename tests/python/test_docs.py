# SPDX-License-Identifier: Apache-2.0
"""The documents quote the sources that they name, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])


def comment_from(path: str, first_line: str) -> str:
    """The // block of a source file that starts with `first_line`, without its slashes."""
    lines = (ROOT / path).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"// {first_line}"))
    block = []
    for line in lines[start:]:
        if not line.startswith("//"):
            break
        block.append(line[3:])
    return "\n".join(block)


def test_format_md_quotes_the_format_comment_word_for_word() -> None:
    quoted = re.search(r"```text\n(.*?)\n```", (ROOT / "docs/format.md").read_text(), re.DOTALL)
    assert quoted
    assert quoted[1] == comment_from("include/turboquant/format.h", "A page: ")


def test_format_md_has_the_page_sizes_that_the_header_asserts() -> None:
    header = (ROOT / "include/turboquant/format.h").read_text()
    asserted = re.findall(r"static_assert\(PageFormat\{(\d+), (\d), (\d)\}\.page_bytes\(\) == (\d+)\)", header)
    assert asserted
    doc = (ROOT / "docs/format.md").read_text()
    for head_dim, k_bits, v_bits, page_bytes in asserted:
        size, baseline = int(page_bytes), 4 * int(head_dim)
        row = f"| {head_dim} | {k_bits}/{v_bits} | {size:,} | {size / 64:g} | {baseline} | {64 * baseline / size:.2f} |"
        assert row in doc, row


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
