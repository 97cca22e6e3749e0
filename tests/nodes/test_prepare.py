"""A node is lost while sources are prepared: the shards are those of an unbroken run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import pytest
from faulty_source import ROWS, make_faulty
from job_process import end_of, start_job
from preparation import hashes, scenes, write_preparation
from ray.util.state import list_tasks
from ray.util.state.common import TaskState
from ray_nodes import Node, RayCluster
from waiting import wait_until

from stagebeam.data.manifest import read_manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SPAN = 250  # rows of a stretch, which one task reads
DRAWN, HELD_OUT = 8000, 300


def write_recipe(folder: Path, source: dict[str, object]) -> Path:
    folder.mkdir()
    sources = (source, scenes(DRAWN), scenes(HELD_OUT, split="test"))
    return write_preparation(folder, *sources, rows_per_shard=SPAN)


@contextmanager
def preparing(cluster: RayCluster, recipe: Path) -> Iterator[Popen[bytes]]:
    job = start_job(recipe.with_suffix(".log"), "jobs.prepare", recipe, RAY_ADDRESS=cluster.address)
    try:
        yield job
    finally:
        job.kill()
        job.wait()


def to_its_end(job: Popen[bytes], recipe: Path) -> None:
    assert job.wait(900) == 0, end_of(recipe.with_suffix(".log"))


def made(recipe: Path) -> dict[str, str]:
    return hashes(recipe.parent / "train", recipe.parent / "test")


def marks(recipe: Path) -> dict[str, int]:
    """When each stretch was finished, by its place."""
    unfinished = (recipe.parent / "train" / ".partial").glob("*/mark-*.parquet")
    return {path.name: path.stat().st_mtime_ns for path in unfinished}


def readings(cluster: RayCluster) -> list[TaskState]:
    found = list_tasks(
        address=cluster.url, filters=[("name", "=", "MapBatches(run)")], limit=10_000
    )
    return list(found)


def at_work(cluster: RayCluster) -> list[Node]:
    """Nodes that read a stretch."""
    running = {task.node_id for task in readings(cluster) if task.state == "RUNNING"}
    return [node for node in cluster.nodes if node.id in running]


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
    finished: list[dict[str, int]] = []
    with preparing(cluster, broken) as job:
        for enough in (4, 16):  # stretches
            wait_until(lambda enough=enough: len(marks(broken)) >= enough and at_work(cluster))
            cluster.lose(at_work(cluster)[0])
            finished.append(marks(broken))
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
    assert read == ROWS + DRAWN + HELD_OUT
    assert made(broken) == made(unbroken)
