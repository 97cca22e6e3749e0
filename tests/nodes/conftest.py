"""A head that takes no work and nodes that do, any of which a test may lose."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from job_process import CODE, TESTS
from ray_nodes import RayCluster, ray_cluster

NODES, CPUS = 3, 1  # of each, where a module of tests has no others

# What the rooms' tests share is used here too, on several nodes.
for room in ("nodes", "jobs", "serve", "evaluation"):
    sys.path.append(str(TESTS / room))


@pytest.fixture(scope="module")
def started() -> Iterator[RayCluster]:
    with ray_cluster(path=CODE) as cluster:
        yield cluster


@pytest.fixture
def cluster(started: RayCluster, request: pytest.FixtureRequest) -> RayCluster:
    """With as many nodes as before the last test lost some."""
    while len(started.nodes) < 1 + getattr(request.module, "NODES", NODES):
        started.add(getattr(request.module, "CPUS", CPUS))
    return started
