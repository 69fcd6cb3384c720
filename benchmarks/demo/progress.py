"""What a demo shows while it works: a bar for the stage at hand, a line with its time when it is done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from burnish.benchmarks.demo.job import Tell

_WIDTH = 46


@final
class Display:
    """Stages on a terminal; plain lines where there is none. `seconds` has the time of every stage."""

    def __init__(self, console: Console) -> None:
        self.seconds: dict[str, float] = {}
        self._console = console
        self._bar = Progress(
            SpinnerColumn(), TextColumn(f"{{task.description:<{_WIDTH}}}"), BarColumn(bar_width=20),
            MofNCompleteColumn(), TimeElapsedColumn(), console=console, transient=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @contextmanager
    def __call__(self, title: str) -> Iterator[Tell]:
        """One stage: the yielded callable says how far it is."""
        start = time.perf_counter()
        task = self._bar.add_task(title[:_WIDTH], total=None)

        def tell(what: str, done: int, total: int) -> None:
            text = f"  {what}" if what else title
            self._bar.update(task, description=text[:_WIDTH], completed=done, total=total)

        try:
            yield tell
        finally:
            self._bar.remove_task(task)
        self.seconds[title] = seconds = round(time.perf_counter() - start, 2)
        self._console.print(f"[dim]{seconds:7.1f} s[/dim]  {title}", highlight=False)

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, highlight=False)
