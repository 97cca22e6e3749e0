"""Serving over several nodes: this process as the driver, and where replicas are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray_nodes import Node, RayCluster

from jobs.benchmarks.serve_chaos import replica_pids
from jobs.cluster import SERVE_ENV

FRONT = ("gateway",)  # what HTTP requests are in the hands of
ENGINES = ("generator", "judge")


@contextmanager
def joined(cluster: RayCluster) -> Iterator[None]:
    """This process speaks with the cluster, through the head."""
    ray.init(
        address=cluster.address, log_to_driver=False, runtime_env={"env_vars": dict(SERVE_ENV)}
    )
    try:
        yield
    finally:
        ray.shutdown()


def where(cluster: RayCluster, deployment: str) -> list[tuple[Node, int]]:
    """Node and process of each replica."""
    return [(cluster.node_of(pid), pid) for pid in replica_pids(deployment)]


def loaded_node(cluster: RayCluster) -> Node:
    """The one with the most replicas of engines, a generator's among them, that holds no
    gateway."""
    spared = {node.id for node, _ in where(cluster, "gateway")}
    engines = [[node for node, _ in where(cluster, name)] for name in ENGINES]
    choice = [node for node in cluster.nodes if node in engines[0] and node.id not in spared]
    assert choice, "no generator is on a node of its own"
    return max(choice, key=lambda node: sum(engine.count(node) for engine in engines))


def spread(cluster: RayCluster) -> str:
    """What runs where, by the place of the node among those that joined."""
    numbers = {node.id: number for number, node in enumerate(cluster.nodes)}
    placed = {
        name: sorted(numbers[node.id] for node, _ in where(cluster, name))
        for name in ("gateway", "searcher", *ENGINES)
    }
    return ", ".join(f"{name} on {places}" for name, places in placed.items())
