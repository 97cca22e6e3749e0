"""A whole annotation job, in one asyncio loop: the work is waiting for an endpoint.

Nothing is remembered between runs but the journal. A restart goes through all rows again, and
every call that was answered before is answered from there at once; so finished rows are made
again as they were, and only what is missing is asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from stagebeam.annotate_config import AnnotateConfig
from stagebeam.data.annotate import inputs
from stagebeam.data.annotate import journal as journals
from stagebeam.data.annotate.checks import FaultyError
from stagebeam.data.annotate.client import Endpoint
from stagebeam.data.annotate.control import Budget, Stop, StoppedError
from stagebeam.data.annotate.instruct import Captioned, InstructCalls, Instructor
from stagebeam.data.annotate.journal import Journal
from stagebeam.data.annotate.output import (
    Output,
    Rejected,
    Report,
    Row,
    clear,
    instruct_row,
    staged_row,
)
from stagebeam.data.annotate.staged import StagedCalls, Writer
from stagebeam.data.annotate.wording import Wording, load_wording
from stagebeam.recipe import DataConfig
from stagebeam.records import Example

_GO_ON = "run the same command to go on, nothing that was answered is paid for twice"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is; the calls and the cost are those of the folder's whole life."""

    rows: int
    done: int
    refused: int
    requests: int
    spent: float


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done; read before anything is written."""

    config: AnnotateConfig
    data: DataConfig
    seed: int
    wording: Wording
    rows: int
    digest: str

    @property
    def settings(self) -> dict[str, str]:
        """What shapes the replies, by name."""
        config = self.config
        teacher, checker = config.teacher, config.checker or config.teacher
        return {
            "kind": config.kind,
            "prompt": f"{self.wording.name} version {self.wording.version} ({self.wording.digest})",
            "model": teacher.model,
            "checker": checker.model,
            "temperature": f"{teacher.temperature} and {checker.temperature}",
            "max_tokens": f"{teacher.max_tokens} and {config.check_max_tokens}",
            "seed": str(self.seed),
            "input": self.digest,
        }

    def read(self) -> Iterator[Example | Captioned | Rejected]:
        return islice(inputs.rows(self.config, self.data), self.rows)


def load_job(config: AnnotateConfig, data: DataConfig, seed: int, limit: int | None = None) -> Job:
    """Raises ValueError if the input or the prompt is not there, or the input has no rows."""
    wording = load_wording(config.prompt_file, config.kind)
    rows = inputs.count(config)
    if not rows:
        raise ValueError("There is nothing to annotate: the input has no rows.")
    rows = rows if limit is None else min(rows, limit)
    return Job(config, data, seed, wording, rows, inputs.digest(config))


async def annotate(
    job: Job,
    stop: Stop,
    *,
    fresh: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Report:
    """Ask for every row and write the folder's files; `report.stopped` says why if it ended early.

    Whoever sets `stop` ends the job in order. `fresh` forgets what the folder holds. Raises
    ValueError if the folder was begun with other settings or is in use.
    """
    folder = job.config.output_dir
    begun = (folder / journals.NAME).exists()  # else whatever is in the folder is not ours
    with Journal(folder, job.settings, fresh=fresh) as journal:
        if fresh and begun:
            clear(folder)
        output = Output(folder, array=job.config.kind != "staged")
        try:
            report = await _Run(job, journal, output, stop, on_progress).run()
            output.finish(report)
        except BaseException:
            output.abandon()
            raise
    return report


class _Run:
    def __init__(
        self,
        job: Job,
        journal: Journal,
        output: Output,
        stop: Stop,
        on_progress: Callable[[Progress], None],
    ) -> None:
        config = job.config
        self._job, self._journal, self._output, self._stop = job, journal, output, stop
        self._on_progress = on_progress
        self._bad_rows = 0  # one after another
        self._done = 0
        budget = Budget(config.spend_limit, journal.totals.spent)
        self._teacher = Endpoint(config.teacher, "teacher", journal, budget, stop)
        self._checker = (
            Endpoint(config.checker, "checker", journal, budget, stop)
            if config.checker
            else self._teacher
        )
        self._writer = Writer(
            StagedCalls(config, job.wording, job.seed),
            config.attempts,
            self._teacher,
            self._checker,
        )
        self._instructor = Instructor(
            InstructCalls(config, job.wording, job.seed), config.attempts, self._teacher
        )

    async def run(self) -> Report:
        try:
            await self._all_rows()
        finally:
            await self._teacher.close()
            await self._checker.close()
        return self._report()

    async def _all_rows(self) -> None:
        """Rows are read one at a time as slots come free, so no more of them are in memory."""
        slots = asyncio.Semaphore(self._job.config.teacher.concurrency)
        rows = self._job.read()

        async def work(number: int, row: Example | Captioned | Rejected) -> None:
            try:
                self._put(number, await self._one(row))
            finally:
                slots.release()

        async with asyncio.TaskGroup() as group:
            for number in range(self._job.rows):
                await slots.acquire()
                if self._stop.reason is not None:
                    return
                # In a thread: images are read and decoded.
                row = await asyncio.to_thread(next, rows, None)
                if row is None:
                    return
                group.create_task(work(number, row))

    async def _one(self, row: Example | Captioned | Rejected) -> Row | Rejected | None:
        if isinstance(row, Rejected):
            return row
        try:
            made = await self._make(row)
        except StoppedError:
            return None
        except FaultyError as error:
            # Refusals that were read from the journal say nothing of the endpoint now.
            if row.id in self._teacher.asked or row.id in self._checker.asked:
                self._count_bad(error)
            return Rejected(row.id, error.fault, error.reason)
        self._bad_rows = 0
        return made

    async def _make(self, row: Example | Captioned) -> Row:
        if isinstance(row, Captioned):
            return instruct_row(row.id, row.image, await self._instructor.conversation(row))
        return staged_row(await self._writer.staged(row))

    def _count_bad(self, error: FaultyError) -> None:
        self._bad_rows += 1
        if self._bad_rows >= self._job.config.give_up_after:
            self._stop.set(
                f"{self._bad_rows} rows were refused one after another, the last one for "
                f"'{error.fault}': {error.reason.rstrip('.')}"
            )

    def _put(self, number: int, outcome: Row | Rejected | None) -> None:
        self._output.put(number, outcome)
        self._done += outcome is not None
        refused = self._output.refused.total()
        totals = self._journal.totals
        self._on_progress(
            Progress(self._job.rows, self._done, refused, totals.requests, totals.spent)
        )

    def _report(self) -> Report:
        job, totals, output = self._job, self._journal.totals, self._output
        finished = output.annotated + output.refused.total()
        staged = job.config.kind == "staged"
        return Report(
            complete=self._stop.reason is None,
            stopped=self._stop.reason
            and f"{self._stop.reason}; {finished} of {job.rows} rows are done: {_GO_ON}.",
            kind=job.config.kind,
            prompt=job.settings["prompt"],
            model=self._teacher.model,
            checker=self._checker.model if staged else None,
            rows=job.rows,
            annotated=output.annotated,
            refused=dict(output.refused),
            unusable=dict(self._writer.faults + self._instructor.faults),
            requests=totals.requests,
            replies=totals.replies,
            failed=dict(totals.failed),
            killed=totals.killed,
            prompt_tokens=totals.prompt_tokens,
            completion_tokens=totals.completion_tokens,
            cost=totals.cost,
            unsure=totals.unsure,
            unsure_cost=totals.unsure_cost,
        )
