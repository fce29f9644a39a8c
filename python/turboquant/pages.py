# SPDX-License-Identifier: Apache-2.0
"""Where the tokens of one layer lie: a pool of pages, and the page table of a batch of sequences.

The host knows every length and every page id, so nothing here reads the device.
"""

from __future__ import annotations

import torch

PAGE_TOKENS = 64


class PagePool:
    """Pages uint8 [pages, kv_heads, page_bytes] of one layer, with the number of sequences that hold each."""

    def __init__(self, kv_heads: int, page_bytes: int, device: torch.device) -> None:
        self.data = torch.zeros((0, kv_heads, page_bytes), dtype=torch.uint8, device=device)
        self.holders: list[int] = []
        self.shared = 0  # how many holders there are beside the first of each page
        self.free: list[int] = []

    def reserve(self, count: int) -> None:
        """Makes room for `count` pages in all. Existing pages keep their numbers."""
        have = self.data.shape[0]
        if count <= have:
            return
        grown = self.data.new_zeros((count, *self.data.shape[1:]))
        if have:
            grown[:have].copy_(self.data)
        self.data = grown
        self.holders.extend([0] * (count - have))
        self.free.extend(range(count - 1, have - 1, -1))  # taken from the end: low numbers first

    def take(self, count: int) -> list[int]:
        """`count` free pages, each now held once; grows the pool by an eighth when it is full."""
        missing = count - len(self.free)
        if missing > 0:
            have = self.data.shape[0]
            self.reserve(have + max(missing, have // 8))
        pages = [self.free.pop() for _ in range(count)]
        for page in pages:
            self.holders[page] = 1
        return pages

    def hold(self, page: int) -> None:
        self.holders[page] += 1
        self.shared += 1

    def release(self, page: int) -> None:
        self.holders[page] -= 1
        if self.holders[page] == 0:
            self.free.append(page)
        else:
            self.shared -= 1


class PageTable:
    """The pages of a batch of sequences of one (padded) length. Sequences may share pages: the one that
    writes into a shared page copies it first."""

    def __init__(self, pool: PagePool, batch: int, fixed_pages: int = 0) -> None:
        device = pool.data.device
        self.pool = pool
        self.rows: list[list[int]] = [[] for _ in range(batch)]
        self.length = 0
        self.fixed_pages = fixed_pages  # pages reserved for each sequence; 0: as needed
        self.table = torch.zeros((batch, max(fixed_pages, 1)), dtype=torch.int32, device=device)
        pool.reserve(batch * fixed_pages)

    def prepare(self, tokens: int) -> None:
        """Gives every sequence pages of its own for its next `tokens` positions. All or nothing."""
        first = self.length // PAGE_TOKENS
        last = (self.length + tokens + PAGE_TOKENS - 1) // PAGE_TOKENS
        if self.pool.shared == 0 and self.rows and len(self.rows[0]) >= last:
            return  # the usual step; all rows are of one length
        copies = self._shared_last_pages(first) if self.length % PAGE_TOKENS else []
        missing = [last - len(row) for row in self.rows]
        if not copies and not any(missing):
            return
        pages = self.pool.take(len(copies) + sum(missing))
        if copies:
            data, sources = self.pool.data, [self.rows[i][first] for i in copies]
            targets = pages[: len(copies)]
            data[_index(targets, data.device)] = data[_index(sources, data.device)]
            for i, source, target in zip(copies, sources, targets):
                self.rows[i][first] = target
                self.pool.release(source)
        given = len(copies)
        for row, count in zip(self.rows, missing):
            row.extend(pages[given : given + count])
            given += count
        self._write_table(first, last)

    def advance(self, tokens: int) -> None:
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Forgets positions from `length` on, and pages that hold no other."""
        keep = (length + PAGE_TOKENS - 1) // PAGE_TOKENS
        for row in self.rows:
            for page in row[keep:]:
                self.pool.release(page)
            del row[keep:]
        self.length = length

    def select(self, sources: list[int], index: torch.Tensor) -> None:
        """Sequence i becomes what sequence sources[i] was; `index` is `sources` as a tensor on the device."""
        rows = [list(self.rows[i]) for i in sources]
        table = self.table.index_select(0, index)
        self.pool.reserve(len(rows) * self.fixed_pages)
        for row in rows:
            for page in row:
                self.pool.hold(page)
        for row in self.rows:
            for page in row:
                self.pool.release(page)
        self.rows, self.table = rows, table

    def _shared_last_pages(self, page_index: int) -> list[int]:
        """Sequences that must copy their last page before they write into it: all but one holder of each."""
        left: dict[int, int] = {}
        copies = []
        for i, row in enumerate(self.rows):
            page = row[page_index]
            holders = left.get(page, self.pool.holders[page])
            if holders > 1:
                copies.append(i)
            left[page] = holders - 1
        return copies

    def _write_table(self, first: int, last: int) -> None:
        new = torch.tensor([row[first:last] for row in self.rows], dtype=torch.int32)
        have = self.table.shape[1]
        if last > have:
            width = max(last, have * 3 // 2)
            if not first:  # all of it is new: made here, and brought over at once
                self.table = torch.nn.functional.pad(new, (0, width - last)).to(self.table.device, non_blocking=True)
                return
            wider = self.table.new_zeros((self.table.shape[0], width))
            wider[:, :have] = self.table
            self.table = wider
        self.table[:, first:last].copy_(new, non_blocking=True)


def _index(values: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)
