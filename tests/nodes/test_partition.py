"""A node is cut off while it works: to the others it is gone, by itself it goes on. Nothing is
lost, and nothing of what it still does counts twice.

Each node has a network namespace and an address of its own, so that its cable can be pulled.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from faulty_source import make_faulty
from job_process import CODE
from namespaces import why_not
from preparing import READ, at_work, made, marks, preparing, readings, to_its_end, write_recipe
from ray_nodes import Node, RayCluster, ray_cluster
from waiting import wait_until

from stagebeam.data.manifest import read_manifest

WITHOUT = why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(WITHOUT is not None, reason=str(WITHOUT)),
]

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
    unbroken, broken = (write_recipe(tmp_path / n, source) for n in ("unbroken", "broken"))
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
