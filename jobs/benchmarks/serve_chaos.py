"""Replicas killed at random while questions are asked, and what that cost.

The same questions under the same seeds are asked twice at the same times: in calm, and while
processes of generator and judge replicas get SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from jobs.benchmarks.serve_load import Body, Reply, ask_at

_ASK_PID_S = 2.0


@dataclass(frozen=True, slots=True)
class ChaosFigures:
    """`lost` questions had no answer, `changed` ones another than in calm."""

    questions: int
    kills: int
    lost: int
    changed: int
    worst_s: float
    worst_calm_s: float


def replica_pids(deployment: str) -> list[int]:
    """Processes of a deployment's replicas on this machine, those that are being started left
    out."""
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    pids: list[int] = []
    for name in names:
        if not name.startswith("SERVE_REPLICA::") or f"#{deployment}#" not in name:
            continue
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            actor = ray.get_actor(name, namespace="serve")
            asked: Any = actor.__ray_call__.remote(lambda self: os.getpid())
            pids.append(ray.get(asked, timeout=_ASK_PID_S))
    return pids


class Killer:
    """Kills one replica after another until it is stopped."""

    def __init__(self, deployments: Sequence[str], every_s: float, seed: int) -> None:
        """A kill each `every_s` seconds on average, of any replica of `deployments`."""
        self._deployments, self._every_s = deployments, every_s
        self._luck = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer", daemon=True)
        self.kills = 0

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While this is entered."""
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._luck.uniform(0.5, 1.5) * self._every_s):
            pids = replica_pids(self._luck.choice(self._deployments))
            if pids and not self._stop.is_set():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._luck.choice(pids), signal.SIGKILL)
                    self.kills += 1


async def chaos(
    url: str, bodies: Sequence[Body], due: Sequence[float], *, every_s: float, seed: int
) -> ChaosFigures:
    """Ask in calm, then once more while replicas die."""
    calm = await ask_at(url, bodies, due)
    killer = Killer(("generator", "judge"), every_s, seed)
    with killer.at_work():
        disturbed = await ask_at(url, bodies, due)
    return figures_of(calm, disturbed, killer.kills)


def figures_of(calm: Sequence[Reply], disturbed: Sequence[Reply], kills: int) -> ChaosFigures:
    """Raises ValueError where there was no calm to compare with."""
    unanswered = [reply.status for reply in calm if reply.decisions is None]
    if unanswered:
        raise ValueError(f"{len(unanswered)} questions had no answer in calm: {unanswered[:5]}.")
    pairs = list(zip(calm, disturbed, strict=True))
    return ChaosFigures(
        questions=len(disturbed),
        kills=kills,
        lost=sum(reply.decisions is None for reply in disturbed),
        changed=sum(d.decisions not in (None, c.decisions) for c, d in pairs),
        worst_s=max(reply.seconds for reply in disturbed),
        worst_calm_s=max(reply.seconds for reply in calm),
    )
