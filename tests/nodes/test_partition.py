"""A node is cut off while it works: to the others it is gone, by itself it goes on. Nothing is
lost, and nothing of what it still does counts twice.

Each node has a network namespace and an address of its own, so that its cable can be pulled.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import namespaces
import psutil
import pytest
from faulty_source import make_faulty
from job_process import CODE
from preparing import READ, at_work, made, marks, preparing, readings, to_its_end
from preparing import write_recipe as write_preparing
from ray_nodes import Node, RayCluster, ray_cluster
from training_runs import (
    BATCH,
    CHECKPOINT_EVERY,
    STEPS,
    Training,
    expect_same_steps,
    prepared,
    steps_repeated,
    write_recipe,
)
from waiting import wait_until

from stagebeam.data.manifest import read_manifest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    namespaces.needed,
]

CPUS = 2
SPREAD = {"cpus_per_worker": 1.5, "encoders": 1}  # a rank and an encoder to a node
REST = 0.5  # seconds a step, with work on top
CUT_AT = 8  # step
# Ray asks a node every three seconds how it is, and waits ten for an answer, five times at most.
NOTICED_S = 300.0  # on a busy machine


@pytest.fixture(scope="module")
def started() -> Iterator[RayCluster]:
    with ray_cluster(path=CODE, own_addresses=True) as cluster:
        yield cluster


def cut_off(cluster: RayCluster, node: Node) -> float:
    """Pull a node's cable and wait until the head counts it as dead: seconds. Its processes are
    alive all that time."""
    assert node.place is not None
    alive = len(working(node))
    node.place.cut()
    began = time.monotonic()
    wait_until(lambda: cluster.alive() and node.id not in cluster.alive(), NOTICED_S)
    seconds = time.monotonic() - began
    assert alive and working(node), "it was to be cut off, not dead"
    return seconds


def working(node: Node) -> list[psutil.Process]:
    """What a node's raylet has started."""
    return [process for process in node.processes() if named(process).startswith("ray::")]


def named(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def test_what_a_node_that_was_cut_off_was_preparing_is_read_by_another_and_counts_once(
    cluster: RayCluster, tmp_path: Path
) -> None:
    source = make_faulty(tmp_path / "source").source
    unbroken, broken = (write_preparing(tmp_path / n, source) for n in ("unbroken", "broken"))
    began = time.monotonic()
    with preparing(cluster, unbroken) as job:
        to_its_end(job, unbroken)
    calm = time.monotonic() - began
    before = {task.task_id for task in readings(cluster)}
    began = time.monotonic()
    with preparing(cluster, broken) as job:
        wait_until(lambda: len(marks(broken)) >= 4 and at_work(cluster))
        node = at_work(cluster)[0]
        noticed = cut_off(cluster, node)
        node.place.mend()  # what it has to say comes late, and must not count
        to_its_end(job, broken)
    disturbed = time.monotonic() - began
    cluster.lose(node)
    tasks = [task for task in readings(cluster) if task.task_id not in before]
    again = sum(task.attempt_number > 0 for task in tasks)
    manifests = [read_manifest(broken.parent / part) for part in ("train", "test")]
    read = sum(manifest.read for manifest in manifests)
    print(
        f"prepare: {read} rows read, one of 3 nodes at {node.place.address} cut off, noticed after "
        f"{noticed:.0f} s, {again} stretches read again, {disturbed:.0f} s ({calm:.0f} s "
        "undisturbed)"
    )
    assert again > 0, "the node was not at work when it was cut off"
    assert read == READ
    assert made(broken) == made(unbroken)


def test_a_run_whose_rank_was_cut_off_comes_to_what_the_unbroken_one_does(
    cluster: RayCluster,
) -> None:
    with prepared() as folder:
        unbroken, run = (
            Training(write_recipe(folder, name, **SPREAD), rest, cluster.address)
            for name, rest in (("unbroken", 0.0), ("cut", REST))
        )
        began = time.monotonic()
        unbroken.complete()
        calm = time.monotonic() - began
        began = time.monotonic()
        run.start()
        try:
            node = cluster.node_of(run.wait_for_read(1, CUT_AT, set()))
            ranks = {read["pid"] for read in run.reads()}
            assert sum(node.runs(pid) for pid in ranks) == 1, "both ranks are on one node"
            noticed = cut_off(cluster, node)
            node.place.mend()
            run.end()
        finally:
            run.kill()
        disturbed = time.monotonic() - began
        cluster.lose(node)
        repeated = steps_repeated(run)
        counts = Counter(row for rows in run.rows().values() for row in rows)
        print(
            f"train: {STEPS} steps, {counts.total()} rows, one rank's node cut off, noticed after "
            f"{noticed:.0f} s, steps repeated {repeated}, {disturbed:.0f} s ({calm:.0f} s "
            "undisturbed)"
        )
        assert len(repeated) == 1 and repeated[0] <= 2 * CHECKPOINT_EVERY
        expect_same_steps(run, unbroken)
        assert run.rows() == unbroken.rows()
        assert counts.total() == STEPS * BATCH
        assert run.ledger() == unbroken.ledger()
        assert run.weights.read_bytes() == unbroken.weights.read_bytes()
