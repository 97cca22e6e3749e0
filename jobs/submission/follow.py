"""A submitted job's log as it grows, up to the job's end, over connections that may break."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus

import aiohttp
from ray.job_submission import JobStatus

from jobs.submission.head import PATIENCE, Head, LostError, answered

QUIET = 30.0  # seconds without a line after which the head is asked whether it is still there
PAUSE = 2.0  # seconds between one connection and the next
_KEPT = 20_000  # characters of a log in which a failed job's reason is looked for
_LONGEST = 400  # characters of a reason
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_SAYS_WHY = re.compile(r"error: |[\w.]*(Error|Exception|Interrupt)\b")


@dataclass
class Shown:
    """How much of a log has been shown, whichever connection brought it."""

    write: Callable[[str], object]
    skip: int = 0  # lines that were shown elsewhere
    lines: int = 0  # whole lines so far, the skipped ones too
    end: str = ""  # of what has come
    _characters: int = field(default=0, init=False)
    _at: int = field(default=0, init=False)  # where this connection is, in characters

    def begin(self) -> None:
        """Another connection, which brings the log from its start."""
        self._at = 0

    def add(self, text: str) -> None:
        """What the connection brings next; what was shown before is passed over."""
        new = text[max(0, self._characters - self._at) :]
        self._at += len(text)
        self._characters = max(self._characters, self._at)
        self.end = (self.end + new)[-_KEPT:]
        while new and self.lines < self.skip:
            _, newline, new = new.partition("\n")
            self.lines += len(newline)
        self.lines += new.count("\n")
        if new:
            self.write(new)

    def again(self) -> None:
        """Another log, of a job that is tried again: all of it is new."""
        self.skip = self.lines = self._characters = self._at = 0
        self.end = ""

    def whole(self, log: str) -> None:
        """The whole log, so far."""
        self.begin()
        self.add(log)


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    status: int  # for the shell
    sentence: str


async def follow(
    head: Head,
    job: str,
    shown: Shown,
    *,
    patience: float = PATIENCE,
    note: Callable[[str], object] = lambda said: None,
) -> Outcome:
    """Show the job's log until the job ends.

    A connection that breaks is made again; the head may be away for `patience` seconds each time,
    `note` is told of it. The log is read whole once the job has ended, as a stream may end early
    (KubeRay 2788).

    Raises LostError where the head stays away (the job may well go on), UnknownJobError where it
    knows no such job.
    """
    told = -1  # where it was last said, in lines
    while True:
        lost = False
        try:
            await _stream(head, job, shown)
        except LostError as error:
            lost = True
            if shown.lines != told:
                note(f"The connection to the head is lost ({error}); trying again.")
                told = shown.lines
        details = await answered(lambda: head.get_job_info(job), patience)
        over = details.status.is_terminal()
        if over or lost:
            # The node with the log may be gone, whose log goes with it: that is no reason to wait.
            with suppress(LostError):
                shown.whole(await asyncio.to_thread(head.get_job_logs, job))
        if over:
            code, message = details.driver_exit_code, details.message or ""
            return outcome(job, details.status, code, message, shown.end)
        await asyncio.sleep(PAUSE)


async def _stream(head: Head, job: str, shown: Shown) -> None:
    """One connection, until its end. Raises LostError where that is not the log's."""
    shown.begin()
    chunks = head.tail_job_logs(job)
    try:
        while (chunk := await _next(head, job, chunks)) is not None:
            shown.add(chunk)
    except aiohttp.WSServerHandshakeError as error:
        if error.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise head.unauthorised(error.status) from None
        if error.status == HTTPStatus.NOT_FOUND:
            raise head.unknown() from None
        raise LostError(str(error.status)) from error
    except (aiohttp.ClientError, OSError, RuntimeError) as error:
        raise LostError(type(error).__name__) from error


async def _next(head: Head, job: str, chunks: AsyncIterator[str]) -> str | None:
    """What comes next; None at the end. A connection that is silent may be dead without having
    said so: then the head is asked, which fails where it is."""
    waiting = asyncio.ensure_future(_one(chunks))
    try:
        while not (await asyncio.wait({waiting}, timeout=QUIET))[0]:
            details = await asyncio.to_thread(head.get_job_info, job)
            if details.status.is_terminal():
                return None
        return waiting.result()
    finally:
        waiting.cancel()


async def _one(chunks: AsyncIterator[str]) -> str | None:
    return await anext(chunks, None)


def outcome(job: str, status: JobStatus, code: int | None, message: str, log: str) -> Outcome:
    """The job's own exit status, 128 more than the signal that ended it, or 1 where it had none;
    and one sentence, with the reason where it failed."""
    if status is JobStatus.SUCCEEDED:
        return Outcome(0, f"Job {job} has succeeded.")
    if status is JobStatus.STOPPED:
        return Outcome(1, f"Job {job} was stopped.")
    if code is None:  # it did not come to run, or the node that ran it is gone
        return ended(job, message)
    how = f"with exit status {code}" if code > 0 else f"by signal {-code}"
    return Outcome(code if code > 0 else 128 - code, f"Job {job} failed {how}: {reason(log)}")


def ended(job: str, why: str | None) -> Outcome:
    """A job that failed without a status of its own."""
    said = " ".join((why or "no reason is given").split())
    return Outcome(1, f"Job {job} failed: {said[:_LONGEST]}")


def reason(log: str) -> str:
    """The line of a failed job's log that says why: the last that looks like it, or the last."""
    lines = [line for raw in log.split("\n") if (line := _COLOURS.sub("", raw).strip())]
    telling = [line for line in lines if _SAYS_WHY.match(line)]
    said = (telling or lines or ["it wrote nothing"])[-1]
    return said.removeprefix("error: ")[:_LONGEST]


def to_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
