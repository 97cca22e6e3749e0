"""What a run tells, on its way from the ranks to the driver.

No Ray here: `launch.py` makes an actor of the board, and asks it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stagebeam.training.contracts import EvaluationReport, StepReport

LOOK_EVERY = 0.5  # seconds

Report = StepReport | EvaluationReport
Progress = Callable[[Report], None]

_log = logging.getLogger(__name__)


class Board:
    """Where rank 0 writes what happened, each rank the rows it refused, and the driver reads."""

    def __init__(self) -> None:
        self._reports: list[Report] = []
        self._told = 0
        self._refused: dict[str, str] = {}
        self._fault: str | None = None

    def refuse(self, rows: dict[str, str]) -> None:
        self._refused |= rows

    def refused(self) -> dict[str, str]:
        return self._refused

    def fail(self, fault: str) -> None:
        self._fault = fault

    def fault(self) -> str | None:
        return self._fault

    def add(self, reports: list[Report]) -> int:
        """How many there are now."""
        self._reports += reports
        return len(self._reports)

    def since(self, count: int) -> list[Report]:
        """For the driver, which by asking says that it has told of the first `count`."""
        self._told = count
        return self._reports[count:]

    def told(self) -> int:
        return self._told


@contextmanager
def watching(since: Callable[[int], list[Report]], on_report: Progress) -> Iterator[None]:
    """Call `on_report` from a thread for reports as they come in; `since` is the board's. What
    `on_report` raises is logged: a display or a tracker that fails stops neither training nor its
    checkpoints."""
    done = threading.Event()

    def watch() -> None:
        seen = 0
        last = {StepReport: 0, EvaluationReport: 0}
        while True:
            ended = done.wait(LOOK_EVERY)
            reports = since(seen)
            seen += len(reports)
            for report in reports:
                if report.step > last[type(report)]:
                    last[type(report)] = report.step
                    try:
                        on_report(report)
                    except Exception:
                        _log.exception("A report of step %d was not told.", report.step)
            if ended:
                return

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
