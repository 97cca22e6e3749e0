"""The head's state is in Redis: answers go on while the head is away, and it comes back to them."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bad_requests import body
from job_process import CODE
from namespaces import why_not
from ray import serve
from ray.serve.config import HTTPOptions
from ray_nodes import RayCluster, free_port, ray_cluster
from scripted_app import LOADERS, scripted_config, scripted_search
from serving_nodes import joined
from waiting import wait_until

from jobs.benchmarks.serve_chaos import figures_of
from jobs.benchmarks.serve_load import arrivals, ask_at
from serve.app import APP, build_app
from stagebeam.recipe import Autoscaling

SERVER = shutil.which("redis-server")
WITHOUT = why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(SERVER is None, reason="there is no redis-server"),
    pytest.mark.skipif(WITHOUT is not None, reason=str(WITHOUT)),
]

PAIR = Autoscaling(num_cpus=0.2, min_replicas=2, max_replicas=2)
QUESTIONS, RATE = 60, 1.0  # a second
PATIENCE_S = 300.0


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Its address."""
    port = free_port()
    assert SERVER is not None
    command = [SERVER, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    server = subprocess.Popen([*command, "--save", ""], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: answers(port))
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


def deploy(cluster: RayCluster, log: Path) -> int:
    """The port on which every node answers; what is served outlives the driver."""
    port = free_port()
    config = scripted_config(log, PAIR, PAIR)
    with joined(cluster):
        serve.start("EveryNode", http_options=HTTPOptions(host="0.0.0.0", port=port))
        serve.run(build_app(config, scripted_search(3), **LOADERS), name=APP)
    return port


async def test_questions_are_answered_while_the_head_is_away(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.mkdir()
    kept = {"RAY_external_storage_namespace": "stagebeam"}
    patient = {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}  # as KubeRay sets it
    bodies = [
        body(f"steady question {number}", search={"include_trace": True, "seed": number})
        for number in range(QUESTIONS)
    ]
    due = arrivals(RATE, QUESTIONS, 0)
    with (
        redis_server(tmp_path) as store,
        ray_cluster(
            path=CODE, own_addresses=True, RAY_REDIS_ADDRESS=store, **kept, **patient
        ) as cluster,
    ):
        nodes = [cluster.add() for _ in range(2)]
        port = deploy(cluster, log)
        assert nodes[0].place is not None
        url = f"http://{nodes[0].place.address}:{port}"
        calm = await ask_at(url, bodies, due, patience_s=PATIENCE_S)
        asking = asyncio.create_task(ask_at(url, bodies, due, patience_s=PATIENCE_S))
        before = len(list(log.iterdir()))
        await asyncio.to_thread(wait_until, lambda: len(list(log.iterdir())) > before + 20)
        cluster.lose(cluster.head)
        began = time.monotonic()
        replies = await asking
        away = time.monotonic() - began
        await asyncio.to_thread(cluster.start, 0)
        await asyncio.to_thread(wait_until, lambda: {n.id for n in nodes} < cluster.alive())
        again = await ask_at(url, bodies[:10], due[:10], patience_s=PATIENCE_S)
    figures = figures_of(calm, replies, kills=1)
    print(f"serve without its head for {away:.0f} s: {figures}")
    assert (figures.lost, figures.changed) == (0, 0)
    assert [reply.decisions for reply in again] == [reply.decisions for reply in calm[:10]]
