"""A training job that is killed goes on as if it had not been.

Ten kills at random steps, five to a run: in turn one rank's process, after which Ray restarts the
ranks and the job ends well by itself, and the whole job with its cluster, after which the same
command is given again. Each is followed by a resume of its own; what all of a run's resumes come to
together is held against the unbroken run, to the last digit: losses, gradients, the rows of each
step and rank, the ledger, the weights.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from training_runs import (
    CHECKPOINT_EVERY,
    STEPS,
    UNCOMMITTED,
    Training,
    expect_same_steps,
    prepared,
    steps_repeated,
    write_recipe,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RUNS, KILLS = 2, 5
REST = 0.4  # seconds a step, with work on top


@dataclass(frozen=True)
class Kill:
    step: int
    rank: int  # that dies, or that tells the step where all die
    whole: bool
    delay: float  # seconds into the step: its computation, or a checkpoint being written


def drawn(run: int) -> list[Kill]:
    luck = random.Random(run)
    steps = sorted(luck.sample(range(1, STEPS + 1), KILLS))
    whole = [(run + number) % 2 == 1 for number in range(KILLS)]
    return [
        Kill(step, luck.randrange(2), all_, luck.uniform(0, 0.3))
        for step, all_ in zip(steps, whole, strict=True)
    ]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with prepared() as folder:
        yield folder


@pytest.fixture(scope="module")
def unbroken(folder: Path) -> Training:
    run = Training(write_recipe(folder, "unbroken"))
    try:
        run.complete()
    finally:
        run.kill()
    return run


def test_ten_kills_of_both_kinds_are_drawn() -> None:
    kills = [kill for run in range(RUNS) for kill in drawn(run)]
    assert len(kills) == 10
    assert sum(kill.whole for kill in kills) == 5


@pytest.mark.parametrize("number", range(RUNS))
def test_a_killed_run_comes_to_what_the_unbroken_one_does(
    number: int, folder: Path, unbroken: Training
) -> None:
    run = Training(write_recipe(folder, f"killed-{number}"), REST)
    try:
        break_off(run, drawn(number))
    finally:
        run.kill()
    repeated = steps_repeated(run)
    print(f"steps repeated after each kill: {repeated}")
    assert len(repeated) == KILLS
    assert max(repeated) <= CHECKPOINT_EVERY + UNCOMMITTED
    assert max(repeated) < STEPS // 2, "no kill may throw a run back to its start"
    expect_same_steps(run, unbroken)
    rows = {(read["rank"], read["step"]): read["rows"] for read in unbroken.reads()}
    assert all(read["rows"] == rows[read["rank"], read["step"]] for read in run.reads())
    assert run.ledger() == unbroken.ledger()
    assert run.weights.read_bytes() == unbroken.weights.read_bytes()
    assert processes_in(folder) == []


def break_off(run: Training, kills: list[Kill]) -> None:
    """Run the job to its end through all the kills."""
    dead: set[int] = set()
    run.start()
    for kill in kills:
        process = run.wait_for_read(kill.rank, kill.step, dead)
        time.sleep(kill.delay)
        if kill.whole:
            run.kill()
            run.start()
        else:
            os.kill(process, signal.SIGKILL)
        dead |= {read["pid"] for read in run.reads()}
    run.end()


def processes_in(folder: Path) -> list[str]:
    commands = (" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))
    return [command for command in commands if str(folder) in command]
