"""Where a submitted job runs: beside a Ray head that is there, or on its own cluster in Kubernetes.

One flag says which: the address of a head's dashboard, or the cluster file (docs/clusters.md) that
`stagebeam render` takes.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from jobs.submission.follow import Outcome, Shown, follow
from jobs.submission.head import PATIENCE, Head, LostError, connect, submit
from jobs.submission.shipping import relative_paths, shipment
from stagebeam.cluster.config import KubernetesCluster, load_cluster
from stagebeam.cluster.kuberay import JOB_WORK, ray_job
from stagebeam.recipe import Recipe

if TYPE_CHECKING:
    from jobs.submission.kubernetes import Kubernetes

Note = Callable[[str], object]  # for who watches


class Place(Protocol):
    """Every method raises ValueError of one sentence where it is refused, LostError where the
    place does not answer."""

    @property
    def name(self) -> str:
        """Who is asked, in messages."""
        ...

    def hand_over(self, job: str, path: Path, recipe: Recipe, arguments: Sequence[str]) -> str:
        """Start a job; returns its id."""
        ...

    async def follow(self, job: str, shown: Shown, *, patience: float = PATIENCE) -> Outcome:
        """Show a job's log until the job ends."""
        ...

    async def stop(self, job: str) -> None: ...


@dataclass(frozen=True)
class OnHead:
    """A cluster that is there: the clone is shipped to it."""

    head: Head
    clone: Path
    note: Note
    name: str = "head"

    def hand_over(self, job: str, path: Path, recipe: Recipe, arguments: Sequence[str]) -> str:
        name = f"stagebeam-{job}-{secrets.token_hex(6)}"
        if relative := relative_paths(recipe):
            self.note(
                f"warning: {', '.join(relative)}: relative, so they lie in the job's own copy of "
                "the folder and go with it; name storage that all nodes see"
            )
        with shipment(job, path, recipe, arguments, self.clone) as shipped:
            try:
                submit(self.head, name, shipped.command, shipped.runtime_env)
            except LostError as error:
                raise ValueError(f"The head has stopped answering: {error}.") from None
            except KeyboardInterrupt:
                self.note(f"If the head has taken the job, it is {name}.")
                raise
        return name

    async def follow(self, job: str, shown: Shown, *, patience: float = PATIENCE) -> Outcome:
        return await follow(self.head, job, shown, patience=patience, note=self.note)

    async def stop(self, job: str) -> None:
        await asyncio.to_thread(self.head.stop_job, job)


@dataclass(frozen=True)
class OnKubernetes:
    """A cluster that comes with the job and goes with it: its image's code runs."""

    kubernetes: Kubernetes
    cluster: KubernetesCluster
    note: Note
    name: str = "API server"

    def hand_over(self, job: str, path: Path, recipe: Recipe, arguments: Sequence[str]) -> str:
        work = next((work for work in JOB_WORK if work == job), None)
        if work is None:
            raise ValueError(
                f"A cluster of its own comes with {', '.join(JOB_WORK)}; submit {job} to a head's "
                "address."
            )
        manifests = ray_job(work, recipe, self.cluster, *arguments)
        try:
            return asyncio.run(self.kubernetes.hand_over(manifests, self.note))
        except LostError as error:
            raise ValueError(f"The API server does not answer: {error}.") from None

    async def follow(self, job: str, shown: Shown, *, patience: float = PATIENCE) -> Outcome:
        return await self.kubernetes.follow(job, shown, patience=patience, note=self.note)

    async def stop(self, job: str) -> None:
        await self.kubernetes.stop_job(job)


def place_of(to: str, clone: Path, note: Note) -> Place:
    """Raises ValueError where it is neither a head's address nor a cluster file of Kubernetes."""
    if "://" in to or not to.endswith((".yaml", ".yml")):
        return OnHead(connect(to), clone, note)
    cluster = load_cluster(Path(to))
    if not isinstance(cluster, KubernetesCluster):
        raise ValueError(
            f"{to} is for `ray up`, which starts a cluster: name its head's address instead."
        )
    # imported here: an extra, and its second is for those alone who use it
    try:
        from jobs.submission.kubernetes import Kubernetes
    except ModuleNotFoundError as error:
        raise ValueError(
            f"Kubernetes needs {error.name}: pip install 'stagebeam[kubernetes]'."
        ) from None
    return OnKubernetes(Kubernetes(cluster.namespace), cluster, note)
