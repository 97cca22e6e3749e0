"""A node is lost while sources are prepared: the shards are those of an unbroken run."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest
from faulty_source import make_faulty
from preparing import READ, at_work, made, marks, preparing, readings, to_its_end, write_recipe
from ray_nodes import RayCluster
from waiting import wait_until

from stagebeam.data.manifest import read_manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def amid(cluster: RayCluster, recipe: Path, stretches: int) -> bool:
    """Whether so many stretches are finished, and others are being read."""
    return len(marks(recipe)) >= stretches and bool(at_work(cluster))


def test_what_a_lost_node_was_reading_is_read_once_more_and_nothing_twice(
    cluster: RayCluster, tmp_path: Path
) -> None:
    source = make_faulty(tmp_path / "source").source
    unbroken = write_recipe(tmp_path / "unbroken", source)
    began = time.monotonic()
    with preparing(cluster, unbroken) as job:
        to_its_end(job, unbroken)
    calm = time.monotonic() - began
    before = {task.task_id for task in readings(cluster)}

    broken = write_recipe(tmp_path / "broken", source)
    began = time.monotonic()
    with preparing(cluster, broken) as job:
        for enough in (4, 16):  # stretches
            wait_until(partial(amid, cluster, broken, enough))
            cluster.lose(at_work(cluster)[0])
            assert job.poll() is None, "it had ended before it was disturbed"
        to_its_end(job, broken)
    disturbed = time.monotonic() - began

    tasks = [task for task in readings(cluster) if task.task_id not in before]
    again = sum(task.attempt_number > 0 for task in tasks)
    manifests = [read_manifest(broken.parent / part) for part in ("train", "test")]
    rows, read = (sum(getattr(m, of) for m in manifests) for of in ("rows", "read"))
    print(
        f"prepare: {read} rows read, {rows} written, 2 of 3 nodes lost, {again} stretches read "
        f"again, {disturbed:.0f} s ({calm:.0f} s undisturbed)"
    )
    assert again > 0, "no node was at work when it was lost"
    assert read == READ
    assert made(broken) == made(unbroken)
