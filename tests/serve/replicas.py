"""Finding, counting and waiting for the replicas that a test kills."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest
import ray


def replica_pids(deployment: str) -> list[int]:
    names = ray.util.list_named_actors(all_namespaces=True)
    replicas = [
        n["name"]
        for n in names
        if n["name"].startswith("SERVE_REPLICA::") and f"#{deployment}#" in n["name"]
    ]
    actors = [ray.get_actor(name, namespace="serve") for name in replicas]
    return ray.get([actor.__ray_call__.remote(lambda self: os.getpid()) for actor in actors])


def calls_in_flight(log: Path, before: set[Path], engine: str) -> tuple[int, int]:
    """How many calls of one engine have started and have finished since `before`."""
    names = [path.name for path in set(log.iterdir()) - before]
    return (
        sum(name.startswith(f"started-{engine}") for name in names),
        sum(name.startswith(f"finished-{engine}") for name in names),
    )


def wait_for_new(deployment: str, old: list[int]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(ray.exceptions.RayActorError, ValueError):
            if len(replica_pids(deployment)) == len(old) and not set(
                replica_pids(deployment)
            ) & set(old):
                return
        time.sleep(0.5)
    pytest.fail(f"{deployment} was not replaced")
