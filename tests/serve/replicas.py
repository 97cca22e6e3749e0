"""Calls of the replicas that a test kills, and waiting for new ones."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from jobs.benchmarks.serve_chaos import replica_pids


def calls_in_flight(log: Path, before: set[Path], engine: str) -> tuple[int, int]:
    """How many calls of one engine have started and have finished since `before`."""
    names = [path.name for path in set(log.iterdir()) - before]
    return (
        sum(name.startswith(f"started-{engine}") for name in names),
        sum(name.startswith(f"finished-{engine}") for name in names),
    )


def deciding_later_stage(log: Path, before: set[Path], engine: str) -> bool:
    """Whether a search waits for an engine that has answered it before: in one call, or in several
    where the question was divided."""
    started, finished = calls_in_flight(log, before, engine)
    return started > finished > 0


def wait_for_new(deployment: str, old: list[int]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        now = replica_pids(deployment)
        if len(now) == len(old) and not set(now) & set(old):
            return
        time.sleep(0.5)
    pytest.fail(f"{deployment} was not replaced")
