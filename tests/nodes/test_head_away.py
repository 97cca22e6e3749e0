"""The head's state is kept where it outlives the head: answers go on while the head is away, and it
comes back to the nodes that it had."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import namespaces
import pytest
from bad_requests import body
from job_process import CODE
from ray import serve
from ray.serve.config import HTTPOptions
from ray_nodes import BIN, RayCluster, free_port, ray_cluster
from scripted_app import LOADERS, scripted_config, scripted_search
from serving_nodes import joined
from waiting import wait_until

from jobs.benchmarks.serve_chaos import figures_of, replica_pids
from jobs.benchmarks.serve_load import arrivals, ask_at
from serve.app import APP, build_app
from stagebeam.recipe import Autoscaling

REDIS = shutil.which("redis-server", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    # Each node has a proxy on the same port, so each needs an address.
    namespaces.needed,
]

PAIR = Autoscaling(num_cpus=0.2, min_replicas=2, max_replicas=2)
QUESTIONS, RATE = 80, 2.0  # a second
AGAIN = 10  # questions once the head is back
PATIENCE_S = 600.0
PATIENT = {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}  # as KubeRay sets it


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Its address."""
    port = free_port()
    assert REDIS is not None
    command = [REDIS, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    server = subprocess.Popen([*command, "--save", ""], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: answers(port), 60)
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as asked:
            asked.sendall(b"PING\r\n")
            return asked.recv(16).startswith(b"+PONG")
    except OSError:
        return False


@pytest.fixture(
    params=[
        pytest.param(
            "redis",
            marks=pytest.mark.skipif(
                REDIS is None,
                reason="Redis itself is no Python package: install redis-server (rocksdb runs)",
            ),
        ),
        "rocksdb",  # within the head, on its disk; alpha in Ray 2.60
    ]
)
def started(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RayCluster]:
    with ExitStack() as stack:
        if request.param == "redis":
            store = {"RAY_REDIS_ADDRESS": stack.enter_context(redis_server(tmp_path))}
        else:
            store = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(tmp_path / "gcs")}
        yield stack.enter_context(
            ray_cluster(path=CODE, own_addresses=True, head_env=store, **PATIENT)
        )


def deploy(cluster: RayCluster, log: Path) -> int:
    """The port on which every node answers; what is served outlives the driver."""
    port = free_port()
    with joined(cluster):
        serve.start("EveryNode", http_options=HTTPOptions(host="0.0.0.0", port=port))
        serve.run(
            build_app(scripted_config(log, PAIR, PAIR), scripted_search(3), **LOADERS), name=APP
        )
    return port


def replaced(cluster: RayCluster) -> float:
    """Kill a generator; how long it takes until there are as many as before, seconds."""
    with joined(cluster):
        before = replica_pids("generator")
        os.kill(before[0], signal.SIGKILL)
        began = time.monotonic()
        wait_until(lambda: len(set(replica_pids("generator")) - {before[0]}) == len(before), 600)
        return time.monotonic() - began


async def test_questions_are_answered_while_the_head_is_away_and_it_comes_back(
    cluster: RayCluster, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.mkdir()
    bodies = [
        body(f"steady question {number}", search={"include_trace": True, "seed": number})
        for number in range(QUESTIONS)
    ]
    due = arrivals(RATE, QUESTIONS, 0)
    nodes = {node.id for node in cluster.nodes[1:]}
    port = await asyncio.to_thread(deploy, cluster, log)
    place = cluster.nodes[1].place
    assert place is not None
    url = f"http://{place.address}:{port}"

    calm = await ask_at(url, bodies, due, patience_s=PATIENCE_S)
    before = len(list(log.iterdir()))
    asking = asyncio.create_task(ask_at(url, bodies, due, patience_s=PATIENCE_S))
    await asyncio.to_thread(wait_until, lambda: len(list(log.iterdir())) > before + 20)
    assert not asking.done()
    cluster.lose(cluster.head)
    began = time.monotonic()
    replies = await asking
    await asyncio.to_thread(cluster.start, 0)
    away = time.monotonic() - began
    await asyncio.to_thread(wait_until, lambda: nodes < cluster.alive())
    renewed = await asyncio.to_thread(replaced, cluster)
    again = await ask_at(url, bodies[:AGAIN], due[:AGAIN], patience_s=PATIENCE_S)

    figures = figures_of(calm, replies, kills=1)
    print(
        f"serve without its head for {away:.0f} s: {figures}; back with its {len(nodes)} nodes, a "
        f"generator that is killed then is replaced after {renewed:.0f} s"
    )
    assert (figures.lost, figures.changed) == (0, 0)
    assert [reply.decisions for reply in again] == [reply.decisions for reply in calm[:AGAIN]]
