"""A node is lost while questions are asked: each has its answer, and the one it has in calm."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from bad_requests import body
from ray_nodes import Node, RayCluster
from scripted_app import scripted
from serving_nodes import ENGINES, joined, loaded_node, spread, where
from waiting import wait_until

from jobs.benchmarks.serve_chaos import figures_of
from jobs.benchmarks.serve_load import Reply, arrivals, ask_at
from stagebeam.recipe import Autoscaling

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

QUESTIONS, RATE = 240, 2.0  # a second
PATIENCE_S = 600.0  # for an answer
PAIR = Autoscaling(num_cpus=0.2, min_replicas=2, max_replicas=2)


def working(log: Path, pids: list[int]) -> bool:
    """Whether one of these processes is in the midst of a call."""
    names = [path.name.split("-") for path in log.iterdir()]
    count = {"started": 0, "finished": 0}
    for what, _, pid, *_ in names:
        if int(pid) in pids and what in count:
            count[what] += 1
    return count["started"] > count["finished"]


async def disturbed(
    cluster: RayCluster, url: str, log: Path, bodies: list[dict[str, object]], node: Node
) -> tuple[list[Reply], float]:
    """The replies, and how long the engines were fewer than they should be, seconds."""
    pids = [pid for name in ENGINES for at, pid in where(cluster, name) if at is node]
    asking = asyncio.create_task(
        ask_at(url, bodies, arrivals(RATE, len(bodies), 0), patience_s=PATIENCE_S)
    )
    before = len(list(log.iterdir()))
    await asyncio.to_thread(
        wait_until,
        lambda: len(list(log.iterdir())) > before + 100 and working(log, pids),
        every=0.02,
    )
    cluster.lose(node)
    began = time.monotonic()
    assert not asking.done(), "all had been answered before the node was lost"

    def whole() -> bool:
        return all(len(where(cluster, name)) == 2 for name in ENGINES)

    await asyncio.to_thread(wait_until, whole, 600)
    seconds = time.monotonic() - began
    return await asking, seconds


async def test_no_question_is_lost_or_answered_otherwise(
    cluster: RayCluster, tmp_path: Path
) -> None:
    bodies = [
        body(f"steady question {number}", search={"include_trace": True, "seed": number})
        for number in range(QUESTIONS)
    ]
    with joined(cluster), scripted(tmp_path, generators=PAIR, judges=PAIR, candidates=3) as url:
        print(spread(cluster))
        calm = await ask_at(url, bodies, arrivals(RATE, QUESTIONS, 0), patience_s=PATIENCE_S)
        node = loaded_node(cluster)
        replies, seconds = await disturbed(cluster, url, tmp_path, bodies, node)
        print(spread(cluster))
    figures = figures_of(calm, replies, kills=1)
    print(f"serve: {figures}; engines whole again after {seconds:.0f} s")
    assert (figures.lost, figures.changed) == (0, 0)
