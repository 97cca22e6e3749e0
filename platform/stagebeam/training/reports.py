"""What a run tells, on its way from the ranks to the driver, and its checkpoints on theirs to Ray
Train: no checkpoint is committed before the driver has told of the steps that led to it."""

from __future__ import annotations

import logging
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train

from stagebeam.data.ledger import Ledger, Plan
from stagebeam.training.checkpoint import checkpoint_name, write_ledger
from stagebeam.training.contracts import EvaluationReport, StepReport, Take

LOSS = "held_out_loss"
_LOOK_EVERY = 0.5  # seconds

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
def watching(board: Any, on_report: Progress) -> Iterator[None]:
    """Call `on_report` from a thread for reports as they come in. What it raises is logged: a
    display or a tracker that fails stops neither training nor its checkpoints."""
    done = threading.Event()

    def watch() -> None:
        seen = 0
        last = {StepReport: 0, EvaluationReport: 0}
        while True:
            ended = done.wait(_LOOK_EVERY)
            reports = ray.get(board.since.remote(seen))
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


class RayReporter:
    """Sends reports to the board and checkpoints to Ray Train."""

    def __init__(self, board: Any, rank: int, plan: Plan) -> None:
        self._board, self._rank, self._plan = board, rank, plan
        self._attempt = uuid.uuid4().hex[:6]  # Ray takes rank 0's
        self._pending: list[Report] = []
        self._written = threading.Event()
        self._written.set()

    def step(self, report: StepReport) -> None:
        self._add(report)
        if len(self._pending) >= 5:
            self.flush()

    def evaluation(self, report: EvaluationReport) -> None:
        self._add(report)

    def _add(self, report: Report) -> None:
        if self._rank == 0:
            self._pending.append(report)

    def flush(self) -> Any:
        """A reference to how many reports the board then has."""
        added = self._board.add.remote(self._pending)
        self._pending = []
        return added

    def _wait_until_told(self, added: Any) -> None:
        """A run that is continued from a checkpoint never tells of the steps before it again."""
        count = ray.get(added)
        while ray.get(self._board.told.remote()) < count:
            time.sleep(_LOOK_EVERY / 5)

    def checkpoint(self, step: int, take: Take, loss: float | None) -> None:
        """Training waits for the copy out of the device alone; Ray's thread writes it."""
        added = self.flush()
        self._written.wait()  # one copy at a time in host memory
        write = take()
        self._written.clear()
        storage = ray.train.get_context().get_storage()

        def upload(checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            try:
                # Straight to where it stays, on storage that every node mounts.
                folder = Path(storage.build_checkpoint_path_from_name(name))
                folder.mkdir(parents=True, exist_ok=True)
                write(folder)
                if self._rank == 0:
                    write_ledger(Ledger.after(self._plan, step), folder)
            finally:
                self._written.set()
            self._wait_until_told(added)
            return ray.train.Checkpoint(str(folder), storage.storage_filesystem)

        # Without a number Ray 2.60 takes a checkpoint for the best of all.
        score = sys.float_info.max if loss is None else loss
        ray.train.report(
            {"step": step, LOSS: score},
            checkpoint=ray.train.Checkpoint.from_directory(tempfile.mkdtemp()),
            checkpoint_dir_name=checkpoint_name(step, self._attempt),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
        )
