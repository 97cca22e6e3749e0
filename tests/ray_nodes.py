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
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from namespaces import Bridge, Place, bridge
from processes import family, kill_family

BIN = Path(sys.executable).parent
PATIENCE = 180.0  # seconds for a raylet, on a busy machine


@dataclass(frozen=True, slots=True)
class Node:
    """A raylet with its workers and agents, below the process of its `ray start`."""

    id: str
    process: subprocess.Popen[bytes]
    place: Place | None = None  # where it has an address of its own

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

    def __init__(
        self,
        folder: Path,
        env: Mapping[str, str],
        token: str | None = None,
        network: Bridge | None = None,
    ) -> None:
        self._folder, self._env, self._network = folder, dict(env), network
        self.head_env: dict[str, str] = {}  # besides
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        gcs, dashboard = free_port(), free_port()
        host = "127.0.0.1" if network is None else network.address
        self.address = f"{host}:{gcs}"
        self.url = f"http://127.0.0.1:{dashboard}"  # of the dashboard
        self._head_ports = [f"--port={gcs}", f"--dashboard-port={dashboard}"]
        self.nodes: list[Node] = []  # in the order of joining, the head first
        self._known: set[str] = set()  # ids of all that ever joined

    @property
    def head(self) -> Node:
        return self.nodes[0]

    def start(self, cpus: int) -> Node:
        """The head, alone; also once more, after it was lost."""
        # By this file and the other nodes' processes, which it sees here, the head would hold that
        # it runs already.
        (self._folder / "ray_current_cluster").unlink(missing_ok=True)
        own = ["--head", *self._head_ports, f"--temp-dir={self._folder}"]
        own += [f"--ray-client-server-port={free_port()}"]
        env = self.head_env
        if self._network is not None:
            own += [f"--node-ip-address={self._network.address}"]
            env = env | _on(self._network.name)
        head = self._join(own, cpus, **env)
        self.nodes.insert(0, head)
        return head

    def add(self, cpus: int = 1) -> Node:
        """One more node, once the head knows it. They come one by one: together they may take the
        same ports."""
        joining = [f"--address={self.address}"]
        if self._network is None:
            self.nodes.append(self._join(joining, cpus))
        else:
            place = self._network.add()
            joining += [f"--node-ip-address={place.address}"]
            self.nodes.append(self._join(joining, cpus, place, **_on("eth0")))
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

    def _join(
        self, arguments: Sequence[str], cpus: int, place: Place | None = None, **env: str
    ) -> Node:
        command = [str(BIN / "ray"), "start", *arguments, "--block", "--disable-usage-stats"]
        command += [f"--num-cpus={cpus}", f"--object-store-memory={100 << 20}"]
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        command += [f"--dashboard-agent-listen-port={free_port()}"]
        if place is not None:
            command = place.within(command, self._folder)
        log = self._folder / "ray-start.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=self._env | env,
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
        return Node(id_, process, place)


def _on(device: str) -> dict[str, str]:
    """For gloo, which would take the address that the machine's name has: the loopback's."""
    return {"GLOO_SOCKET_IFNAME": device}


@contextmanager
def ray_cluster(
    *,
    head_cpus: int = 0,
    token: str | None = None,
    path: Sequence[Path] = (),
    own_addresses: bool = False,
    head_env: Mapping[str, str] | None = None,
    **env: str,
) -> Iterator[RayCluster]:
    """A head that takes no work unless it has CPUs. Workers find what lies on `path`, and nothing
    else of the repository; all nodes have `env` besides, and the head `head_env`. With
    `own_addresses` each node that joins is in a network namespace, the head in this process's."""
    # Not where other sessions on this machine would look for a cluster to join.
    parent = Path(tempfile.mkdtemp(prefix="sb-", dir="/tmp"))
    folder = parent / "r"
    folder.mkdir()
    shared = environment(token) | {"OMP_NUM_THREADS": "1", "RAY_raylet_start_wait_time_s": "120"}
    if path:
        shared["PYTHONPATH"] = os.pathsep.join(map(str, path))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, parent, ignore_errors=True)
        network = stack.enter_context(bridge()) if own_addresses else None
        cluster = RayCluster(folder, shared | env, token, network)
        cluster.head_env |= head_env or {}
        stack.callback(cluster.stop)
        cluster.start(head_cpus)
        yield cluster


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
