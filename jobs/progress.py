"""What a person watches while a job works."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LINE_EVERY = 10_000


class StepBar:
    """A bar on a terminal; where output goes to a file, a line at every tenth of the way, or at
    every 10,000 while the total is not known."""

    def __init__(self, console: Console, name: str, total: int | None) -> None:
        self._console, self._name, self._total = console, name, total
        self._told = 0
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=total, note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def update(self, done: int, note: str) -> None:
        """`done` of the total, with a word on how it goes."""
        self._bar.update(self._task, completed=done, note=note)
        passed = done // _LINE_EVERY if self._total is None else done * 10 // self._total
        if not self._console.is_terminal and passed > self._told:
            self._told = passed
            of = "" if self._total is None else f"/{self._total}"
            self._console.print(f"  {self._name} {done}{of}  {note}".rstrip())

    def count(self, done: int, total: int | None) -> None:
        """The same where the total is told on the way, or never."""
        if total != self._total:
            self._total = total
            self._bar.update(self._task, total=total)
        self.update(done, "")
