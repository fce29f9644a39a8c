# SPDX-License-Identifier: Apache-2.0
"""Progress on stderr: bars on a terminal, one line a phase elsewhere. stdout keeps the tables."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars


class Progress:
    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)

    @contextlib.contextmanager
    def task(self, what: str, total: int | None = None) -> Iterator[Callable[..., None]]:
        """Yields a function that reports `count` (default 1) of `total` done."""
        start = time.perf_counter()
        if self.console.is_terminal:
            columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
            with Bars(*(columns if total else columns[:2] + columns[4:]), console=self.console, transient=True) as bars:
                task = bars.add_task(what, total=total)
                yield lambda count=1: bars.advance(task, count)
        else:
            self._line(f"{what} ...")
            yield lambda count=1: None
        self._line(f"{what}: {time.perf_counter() - start:.1f} s")

    def _line(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
