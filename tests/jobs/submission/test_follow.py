"""What is shown of a log that comes in pieces, and what a job's end means."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.dashboard.modules.job.pydantic_models import JobDetails, JobType
from ray.job_submission import JobStatus

from jobs.submission.follow import Shown, outcome, reason

LOG = "one\ntwo\n\nfour, and no end"


@given(st.text("ab\n", max_size=40), st.lists(st.integers(0, 40), max_size=4), st.integers(1, 7))
def test_a_log_is_shown_once_however_often_the_connection_breaks(
    log: str, breaks: list[int], size: int
) -> None:
    said: list[str] = []
    shown = Shown(said.append)
    for end in [*sorted(breaks), len(log)]:
        shown.begin()
        for start in range(0, end, size):
            shown.add(log[start : min(start + size, end)])
    assert "".join(said) == log
    assert shown.lines == log.count("\n")


@pytest.mark.parametrize("size", [1, 3, 100])
def test_lines_that_were_shown_elsewhere_are_left_out(size: int) -> None:
    said: list[str] = []
    shown = Shown(said.append, skip=2)
    for start in range(0, len(LOG), size):
        shown.add(LOG[start : start + size])
    assert "".join(said) == "\nfour, and no end"
    assert shown.lines == 3


def test_the_whole_log_adds_what_the_stream_did_not_bring() -> None:
    said: list[str] = []
    shown = Shown(said.append)
    shown.add("one\ntw")
    shown.whole(LOG)
    shown.whole(LOG)
    assert "".join(said) == LOG


def ended(status: JobStatus, code: int | None = None, message: str = "") -> JobDetails:
    return JobDetails(
        type=JobType.SUBMISSION,
        status=status,
        entrypoint="python -m jobs.prepare",
        message=message,
        driver_exit_code=code,
    )


@pytest.mark.parametrize(
    ("details", "status", "sentence"),
    [
        (ended(JobStatus.SUCCEEDED, 0), 0, "Job j has succeeded."),
        (ended(JobStatus.FAILED, 2), 2, "Job j failed with exit status 2: No rows."),
        (ended(JobStatus.FAILED, -9), 137, "Job j failed by signal 9: No rows."),
        (ended(JobStatus.STOPPED), 1, "Job j was stopped."),
        (
            ended(JobStatus.FAILED, message="The node\nis gone."),
            1,
            "Job j failed: The node is gone.",
        ),
    ],
)
def test_a_job_ends_with_its_own_status_and_one_sentence(
    details: JobDetails, status: int, sentence: str
) -> None:
    code, said = details.driver_exit_code, details.message or ""
    end = outcome("j", details.status, code, said, "reading\nerror: No rows.\n")
    assert (end.status, end.sentence) == (status, sentence)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("a\nerror: The recipe is wrong.\n", "The recipe is wrong."),
        (
            "Traceback (most recent call last):\n  a line\nray.RayError: gone\n\x1b[36mbye\n",
            "ray.RayError: gone",
        ),
        ("a\n\x1b[31mKilled\x1b[0m\n\n", "Killed"),
        ("", "it wrote nothing"),
    ],
)
def test_the_reason_is_the_line_that_says_why(log: str, said: str) -> None:
    assert reason(log) == said


def test_a_reason_is_no_page() -> None:
    assert re.fullmatch(r"ValueError: x{1,400}", reason("ValueError: " + "x" * 9000))
