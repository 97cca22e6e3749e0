"""A node is lost while questions are asked: each has its answer, and the one it has in calm."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

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

Replies = list[Reply]


def questions(count: int) -> list[dict[str, Any]]:
    return [
        body(f"steady question {number}", search={"include_trace": True, "seed": number})
        for number in range(count)
    ]


async def ask(url: str, bodies: Sequence[dict[str, Any]]) -> Replies:
    return await ask_at(url, bodies, arrivals(RATE, len(bodies), 0), patience_s=PATIENCE_S)


def working(log: Path, pids: list[int]) -> bool:
    """Whether one of these processes is in the midst of a call."""
    count = {"started": 0, "finished": 0}
    for path in log.iterdir():
        what, _, pid, *_ = path.name.split("-")
        if int(pid) in pids and what in count:
            count[what] += 1
    return count["started"] > count["finished"]


async def losing(
    cluster: RayCluster, node: Node, log: Path, asking: Coroutine[Any, Any, Replies]
) -> tuple[Replies, float]:
    """The replies to what is asked while a node is lost in the midst of a call to an engine; and
    how long it took until the engines were as many as before, seconds."""
    pids = [pid for name in ENGINES for at, pid in where(cluster, name) if at is node]
    before = len(list(log.iterdir()))
    task = asyncio.create_task(asking)

    def amid() -> bool:
        return len(list(log.iterdir())) > before + 100 and working(log, pids)

    def whole() -> bool:
        return all(len(where(cluster, name)) == 2 for name in ENGINES)

    await asyncio.to_thread(wait_until, amid, every=0.02)
    cluster.lose(node)
    began = time.monotonic()
    assert not task.done(), "all had been answered before the node was lost"
    await asyncio.to_thread(wait_until, whole, 900)
    seconds = time.monotonic() - began
    return await task, seconds


async def test_no_question_is_lost_or_answered_otherwise(
    cluster: RayCluster, tmp_path: Path
) -> None:
    bodies = questions(QUESTIONS)
    with joined(cluster), scripted(tmp_path, generators=PAIR, judges=PAIR, candidates=3) as url:
        print(spread(cluster))
        calm = await ask(url, bodies)
        lost = loaded_node(cluster)
        replies, seconds = await losing(cluster, lost, tmp_path, ask(url, bodies))
        print(spread(cluster))
    figures = figures_of(calm, replies, kills=1)
    print(f"serve: {figures}; engines as many as before after {seconds:.0f} s")
    assert (figures.lost, figures.changed) == (0, 0)
