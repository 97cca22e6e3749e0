"""What a job says when its input is wrong: one sentence, and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from pydantic import ValidationError
from ray.exceptions import RayTaskError

from stagebeam.recipe import describe

T = TypeVar("T")
BAD_INPUT = 2


def run_job(job: Callable[[], T]) -> T:
    """The job's result. A ValueError, raised here or in one of its Ray tasks, is printed on
    stderr in one line and ends the process with exit code 2; anything else is a fault of ours
    and keeps its traceback."""
    try:
        return job()
    except ValueError as error:
        print(f"error: {_sentence(error)}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None


def _sentence(error: ValueError) -> str:
    if isinstance(error, RayTaskError) and isinstance(error.cause, ValueError):
        error = error.cause
    text = describe(error) if isinstance(error, ValidationError) else str(error)
    return " ".join(text.split())
