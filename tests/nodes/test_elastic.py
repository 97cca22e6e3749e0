"""Training goes on with the ranks that there is room for and grows again; no row is read twice."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
from ray_nodes import RayCluster
from training_runs import BATCH, CLOSE, STEPS, Training, prepared, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

NODES, CPUS = 2, 2
SPREAD = {"cpus_per_worker": 1.5, "encoders": 1}  # a rank and an encoder to a node
ELASTIC = {**SPREAD, "min_workers": 1, "resize_every_s": 5}
REST = 0.5  # seconds a step, with work on top
LOST_AT, JOINED_AT = 7, 12  # steps


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with prepared() as folder:
        yield folder


def test_two_ranks_become_one_and_two_again(cluster: RayCluster, folder: Path) -> None:
    unbroken = Training(write_recipe(folder, "unbroken", **SPREAD), 0.0, cluster.address)
    run = Training(write_recipe(folder, "elastic", **ELASTIC), REST, cluster.address)
    unbroken.complete()
    began = time.monotonic()
    run.start()
    try:
        lost = cluster.node_of(run.wait_for_read(1, LOST_AT, set()))
        two = {read["pid"] for read in run.reads()}
        cluster.lose(lost)
        run.hold(JOINED_AT)  # so that there are steps left to grow for
        alone = run.wait_for_read(0, JOINED_AT, two)
        shrunk = time.monotonic() - began
        cluster.add(CPUS)
        run.wait_for_read(1, JOINED_AT, two | {alone})
        grown = time.monotonic() - began
        run.release()
        run.end()
    finally:
        run.kill()
    ranks = [count for count, _ in groupby(read["ranks"] for read in run.reads())]
    counts = Counter(row for rows in run.rows().values() for row in rows)
    gap = max(abs(a / b - 1) for a, b in zip(last_losses(run), last_losses(unbroken), strict=True))
    print(
        f"elastic: {STEPS} steps on {ranks} ranks, {counts.total()} rows, alone at step "
        f"{JOINED_AT} after {shrunk:.0f} s, two again after {grown:.0f} s, losses differ by at "
        f"most {gap:.1e}"
    )
    assert ranks == [2, 1, 2]
    assert run.rows() == unbroken.rows()
    assert counts.total() == STEPS * BATCH and set(counts.values()) <= {1, 2}  # an epoch and a half
    assert run.ledger() == unbroken.ledger()
    assert gap < CLOSE


def last_losses(run: Training) -> list[float]:
    """Of every step, as it was taken last."""
    told = {step["train/step"]: step["train/loss"] for step in run.steps()}
    return [told[step] for step in range(1, STEPS + 1)]
