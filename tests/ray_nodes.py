"""A Ray cluster of several raylets on this machine, as `ray start` makes it, whose nodes may be
lost."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from processes import family, kill_family

BIN = Path(sys.executable).parent
PATIENCE = 180.0  # seconds for a raylet, on a busy machine


@dataclass(frozen=True, slots=True)
class Node:
    """A raylet with its workers and agents, below the process of its `ray start`."""

    id: str
    process: subprocess.Popen[bytes]

    def runs(self, pid: int) -> bool:
        """Whether a process is one of this node's."""
        return any(process.pid == pid for process in self.processes())

    def processes(self) -> list[psutil.Process]:
        """Nothing once it is lost."""
        if self.process.poll() is not None:
            return []
        return family(psutil.Process(self.process.pid))

    def kill(self) -> None:
        """The machine goes down: all its processes at once, and none says goodbye."""
        if self.process.poll() is None:
            kill_family(psutil.Process(self.process.pid))
            self.process.wait()


class RayCluster:
    """A head, and the nodes that are added to it."""

    def __init__(self, folder: Path, env: Mapping[str, str], token: str | None = None) -> None:
        self._folder, self._env = folder, dict(env)
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        gcs, dashboard = free_port(), free_port()
        self.address = f"127.0.0.1:{gcs}"
        self.url = f"http://127.0.0.1:{dashboard}"  # of the dashboard
        self._head_ports = [f"--port={gcs}", f"--dashboard-port={dashboard}"]
        self.nodes: list[Node] = []  # in the order of joining, the head first
        self._known: set[str] = set()  # ids of all that ever joined

    @property
    def head(self) -> Node:
        return self.nodes[0]

    def start(self, cpus: int) -> Node:
        """The head, alone."""
        own = ["--head", *self._head_ports, f"--temp-dir={self._folder}"]
        own += [f"--ray-client-server-port={free_port()}"]
        head = self._join(own, cpus)
        self.nodes.insert(0, head)
        return head

    def add(self, cpus: int = 1) -> Node:
        """One more node, once the head knows it. They come one by one: together they may take the
        same ports."""
        self.nodes.append(self._join([f"--address={self.address}"], cpus))
        return self.nodes[-1]

    def lose(self, node: Node) -> None:
        """Kill it; the others find out by themselves."""
        node.kill()
        self.nodes.remove(node)

    def node_of(self, pid: int) -> Node:
        """The one that runs a process."""
        return next(node for node in self.nodes if node.runs(pid))

    def stop(self) -> None:
        """Killed: told to end, a head would wait half a minute for its own node to drain."""
        for node in reversed(self.nodes):
            node.kill()
        self.nodes = []

    def alive(self) -> set[str]:
        """Ids of the nodes that the head holds to be alive."""
        try:
            reply = httpx.get(f"{self.url}/nodes?view=summary", headers=self._headers, timeout=30)
            nodes = reply.raise_for_status().json()["data"]["summary"]
        except (httpx.HTTPError, KeyError):
            return set()
        return {n["raylet"]["nodeId"] for n in nodes if n["raylet"].get("state") == "ALIVE"}

    def _join(self, arguments: Sequence[str], cpus: int) -> Node:
        command = [str(BIN / "ray"), "start", *arguments, "--block", "--disable-usage-stats"]
        command += [f"--num-cpus={cpus}", f"--object-store-memory={100 << 20}"]
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        command += [f"--dashboard-agent-listen-port={free_port()}"]
        log = self._folder / "ray-start.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=self._env,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        end = time.monotonic() + PATIENCE
        while not (joined := self.alive() - self._known):
            if process.poll() is not None or time.monotonic() > end:
                Node("", process).kill()
                raise AssertionError(f"the node does not come up: {log.read_text()[-2000:]}")
            time.sleep(0.3)
        self._known |= joined
        (id_,) = joined
        return Node(id_, process)


@contextmanager
def ray_cluster(
    *, head_cpus: int = 0, token: str | None = None, path: Sequence[Path] = ()
) -> Iterator[RayCluster]:
    """A head that takes no work unless it has CPUs. Workers find what lies on `path`, and nothing
    else of the repository."""
    # Not where other sessions on this machine would look for a cluster to join.
    folder = Path(tempfile.mkdtemp(prefix="sb-", dir="/tmp"))
    shared = environment(token) | {"OMP_NUM_THREADS": "1", "RAY_raylet_start_wait_time_s": "120"}
    if path:
        shared["PYTHONPATH"] = os.pathsep.join(map(str, path))
    cluster = RayCluster(folder, shared, token)
    try:
        cluster.start(head_cpus)
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def ray_nodes(count: int, *, token: str | None = None) -> Iterator[str]:
    """The address of the head's dashboard. Each raylet has one CPU and this interpreter, and
    nothing of the repository on its path."""
    with ray_cluster(head_cpus=1, token=token) as cluster:
        for _ in range(count - 1):
            cluster.add()
        yield cluster.url


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
