"""Preparing on a cluster, and what is there of it at any moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

from faulty_source import ROWS
from job_process import end_of, start_job
from preparation import hashes, scenes, write_preparation
from ray.util.state import list_tasks
from ray.util.state.common import TaskState
from ray_nodes import Node, RayCluster

SPAN = 250  # rows of a stretch, which one task reads
DRAWN, HELD_OUT = 8000, 300
READ = ROWS + DRAWN + HELD_OUT


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
