"""A Ray cluster of several raylets on this machine, as `ray start` makes it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import httpx
import psutil

BIN = Path(sys.executable).parent
PATIENCE = 180.0  # seconds for all raylets, on a busy machine


@contextmanager
def ray_nodes(count: int, *, token: str | None = None) -> Iterator[str]:
    """The address of the head's dashboard. Each raylet has one CPU and this interpreter, and
    nothing of the repository on its path."""
    # Not where other sessions on this machine would look for a cluster to join.
    folder = tempfile.mkdtemp(prefix="sb-", dir="/tmp")
    gcs, dashboard = free_port(), free_port()
    url = f"http://127.0.0.1:{dashboard}"
    head = ["--head", f"--port={gcs}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"]
    head += [f"--ray-client-server-port={free_port()}"]
    env = environment(token) | {"OMP_NUM_THREADS": "1", "RAY_raylet_start_wait_time_s": "120"}
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for number in range(count):  # one by one: together they may take the same ports
            joining = head if number == 0 else [f"--address=127.0.0.1:{gcs}"]
            stack.enter_context(_node(joining, env))
            _wait_for(number + 1, url, headers)
        yield url


def environment(token: str | None = None) -> dict[str, str]:
    """Of a process that speaks with the cluster, or is one of its own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env.pop("PYTHONPATH", None)
    env["PATH"] = f"{BIN}{os.pathsep}{env['PATH']}"
    if token is None:
        return env | {"RAY_AUTH_MODE": "disabled"}
    return env | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


def free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def _node(arguments: list[str], env: dict[str, str]) -> Iterator[None]:
    command = [BIN / "ray", "start", *arguments, "--block", "--disable-usage-stats"]
    command += ["--num-cpus=1", f"--object-store-memory={100 << 20}"]
    command += ["--min-worker-port=0", "--max-worker-port=0"]
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    quiet = subprocess.DEVNULL
    node = subprocess.Popen(command, env=env, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        yield
    finally:
        # Killed: told to end, a head would wait half a minute for its own node to drain.
        started = psutil.Process(node.pid)
        processes = [started, *started.children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait(60)
        psutil.wait_procs(processes, timeout=10)


def _wait_for(count: int, url: str, headers: dict[str, str]) -> None:
    end = time.monotonic() + PATIENCE
    while _alive(url, headers) < count:
        assert time.monotonic() < end, "the cluster does not come up"
        time.sleep(0.3)


def _alive(url: str, headers: dict[str, str]) -> int:
    try:
        reply = httpx.get(f"{url}/nodes?view=summary", headers=headers, timeout=30)
        nodes = reply.raise_for_status().json()["data"]["summary"]
    except (httpx.HTTPError, KeyError):
        return 0
    return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)
