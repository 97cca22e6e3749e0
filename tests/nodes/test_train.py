"""Nodes are lost while a model is trained over two of them: it comes to what an unbroken run does,
to the last digit."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_nodes import RayCluster
from training_runs import (
    BATCH,
    CHECKPOINT_EVERY,
    STEPS,
    UNCOMMITTED,
    Training,
    expect_same_steps,
    prepared,
    steps_repeated,
    write_recipe,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

CPUS = 2
SPREAD = {"cpus_per_worker": 1.5, "encoders": 1}  # a rank and an encoder to a node
REST = 0.5  # seconds a step, with work on top
LOST = ((1, 8), (0, 16))  # the rank whose node goes, and the step that it takes


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with prepared() as folder:
        yield folder


def test_a_run_that_lost_two_nodes_comes_to_what_the_unbroken_one_does(
    cluster: RayCluster, folder: Path
) -> None:
    unbroken, run = (
        Training(write_recipe(folder, name, **SPREAD), rest, cluster.address)
        for name, rest in (("unbroken", 0.0), ("lost", REST))
    )
    began = time.monotonic()
    unbroken.complete()
    calm = time.monotonic() - began
    dead: set[int] = set()
    began = time.monotonic()
    run.start()
    try:
        for rank, step in LOST:
            node = cluster.node_of(run.wait_for_read(rank, step, dead))
            ranks = {read["pid"] for read in run.reads()} - dead
            assert sum(node.runs(pid) for pid in ranks) == 1, "both ranks are on one node"
            cluster.lose(node)
            dead |= ranks
            cluster.add(CPUS)
        run.end()
    finally:
        run.kill()
    disturbed = time.monotonic() - began
    repeated = steps_repeated(run)
    counts = Counter(row for rows in run.rows().values() for row in rows)
    print(
        f"train: {STEPS} steps, {counts.total()} rows, {len(LOST)} nodes lost, steps repeated "
        f"after each {repeated}, {disturbed:.0f} s ({calm:.0f} s undisturbed)"
    )
    assert len(repeated) == len(LOST)
    assert max(repeated) <= CHECKPOINT_EVERY + UNCOMMITTED
    expect_same_steps(run, unbroken)
    assert run.rows() == unbroken.rows()
    assert counts.total() == STEPS * BATCH and set(counts.values()) <= {1, 2}  # an epoch and a half
    assert run.ledger() == unbroken.ledger()
    assert run.weights.read_bytes() == unbroken.weights.read_bytes()
