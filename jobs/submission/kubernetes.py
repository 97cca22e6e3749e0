"""A job on a cluster of its own in Kubernetes: KubeRay's RayJob, handed over, followed, stopped.

What is said of a RayJob's states and of who writes the job's log was read in KubeRay's sources
(`rayjob_types.go`, `rayjob_controller.go`, 1.6).
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import httpx
import kr8s
import kr8s.asyncio
from ray.job_submission import JobStatus

from jobs.submission.follow import PAUSE, Outcome, Shown, ended, outcome
from jobs.submission.head import PATIENCE, START_PATIENCE, LostError, UnknownJobError, asked
from stagebeam.cluster.kuberay import LONGEST_NAME

_LIMITS = httpx.Timeout(30.0, connect=10.0)  # seconds
_SILENT = httpx.Timeout(300.0, connect=10.0)  # a log may pause; then it is asked for again
_OVER = ("Complete", "Failed", "ValidationFailed")
_SUBMITTER = "ray-job-submitter"  # the container whose output is the job's
_EXIT = re.compile(r"failed with exit code (-?\d+)")  # as Ray's job supervisor says it
_RAY = "ray.io/v1"
_BUSY = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)

Manifest = dict[str, Any]
# Where objects of a kind are asked for: API version, plural, whether they lie in a namespace.
_PLACES = {
    "PriorityClass": ("scheduling.k8s.io/v1", "priorityclasses", False),
    "ConfigMap": ("v1", "configmaps", True),
    "RayJob": (_RAY, "rayjobs", True),
}


class RefusedError(ValueError):
    """What the API server does not grant."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"Kubernetes refuses ({status}): {said}")
        self.status = status


@dataclass
class Kubernetes:
    """The API server of the kubeconfig's current context, or of the pod that this runs in.

    Every method raises `LostError` where asking again may help, and a ValueError of one sentence
    where it does not.
    """

    namespace: str
    _api: Any = field(default=None, init=False, repr=False)
    _loop: asyncio.AbstractEventLoop | None = field(default=None, init=False, repr=False)

    async def hand_over(
        self, manifests: list[Manifest], note: Callable[[str], object] = lambda said: None
    ) -> str:
        """Make the objects of one RayJob; returns its name, which no other has.

        What it shares with other jobs (its recipe, named by its content, and the priority class)
        may be there already.
        """
        *shared, job = manifests
        assert job["kind"] == "RayJob"
        metadata = {**job["metadata"], "name": _unique(job["metadata"]["name"])}
        for manifest in shared:
            try:
                await self._make(manifest)
            except RefusedError as error:
                if error.status != HTTPStatus.FORBIDDEN or manifest["kind"] != "PriorityClass":
                    raise
                note(
                    f"warning: you may not make the PriorityClass {manifest['metadata']['name']}; "
                    "pods that want it start only if it is there"
                )
        try:
            await self._make({**job, "metadata": metadata})
        except RefusedError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                raise ValueError("Kubernetes knows no RayJob: KubeRay is not there.") from None
            raise
        return str(metadata["name"])

    async def follow(
        self,
        job: str,
        shown: Shown,
        *,
        patience: float = PATIENCE,
        note: Callable[[str], object] = lambda said: None,
    ) -> Outcome:
        """Show the job's log until the job ends, each try from its own first line.

        Raises LostError where the API server stays away for `patience` seconds, UnknownJobError
        where it knows no such job.
        """
        told, cluster = "", None
        while True:
            found = await asked(lambda: self.get(job), patience)
            status = found.get("status", {})
            state = status.get("jobDeploymentStatus") or "New"
            if state != told:
                note(f"RayJob {job}: {state}")
                told = state
            if status.get("rayClusterName") not in (None, cluster):
                if cluster is not None:
                    note(f"Another try, on cluster {status['rayClusterName']}.")
                    shown.again()
                cluster = status["rayClusterName"]
            if cluster is not None and state not in ("Suspended", "Suspending", "Retrying"):
                with suppress(LostError):
                    await self._stream(job, found, cluster, shown, live=state not in _OVER)
            if state in _OVER:
                return outcome_of(job, status, shown.end)
            await asyncio.sleep(PAUSE)

    async def get(self, job: str) -> Manifest:
        """The RayJob. Raises UnknownJobError where there is none."""
        try:
            async with self._call("GET", _RAY, f"rayjobs/{job}") as response:
                found: Manifest = response.json()
        except RefusedError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            raise UnknownJobError(
                f"There is no RayJob {job} in the namespace {self.namespace}."
            ) from None
        return found

    async def stop_job(self, job: str) -> None:
        """End the job and its cluster: the RayJob is deleted, and what belongs to it goes along."""
        async with self._call(
            "DELETE", _RAY, f"rayjobs/{job}", content='{"propagationPolicy": "Background"}'
        ):
            pass

    async def _make(self, manifest: Manifest) -> None:
        """Make an object that is not there: one of this name is this one, perhaps by a request
        whose answer was lost."""
        version, plural, namespaced = _PLACES[manifest["kind"]]

        async def make() -> None:
            async with self._call(
                "POST", version, plural, namespaced=namespaced, content=json.dumps(manifest)
            ):
                pass

        try:
            await asked(make, START_PATIENCE)
        except RefusedError as error:
            if error.status != HTTPStatus.CONFLICT:
                raise

    async def _stream(
        self, job: str, found: Manifest, cluster: str, shown: Shown, *, live: bool
    ) -> None:
        """The log of a try, up to its end or (not `live`) as it stands.

        Raises LostError where there is none yet, or none any more, or its connection breaks.
        """
        pod = await self._submitter(job, found, cluster)
        if pod is None:
            return
        shown.begin()
        params = {"container": _SUBMITTER, "follow": "true" if live else "false"}
        try:
            async with self._call(
                "GET", "v1", f"pods/{pod}/log", params=params, stream=True, timeout=_SILENT
            ) as response:
                async for text in response.aiter_text():
                    shown.add(text)
        except RefusedError as error:  # its container has not started, or its pod has just gone
            raise LostError(str(error)) from error

    async def _submitter(self, job: str, found: Manifest, cluster: str) -> str | None:
        """The pod that submits: the head's, or one of its own; None where the operator does."""
        mode = found["spec"].get("submissionMode", "K8sJobMode")
        if mode == "HTTPMode":
            return None
        labels = (
            f"ray.io/cluster={cluster},ray.io/node-type=head"
            if mode == "SidecarMode"
            else f"job-name={job}"
        )
        async with self._call("GET", "v1", "pods", params={"labelSelector": labels}) as response:
            pods = response.json()["items"]
        if not pods:
            raise LostError("its pod is not there")
        newest = max(pods, key=lambda pod: pod["metadata"].get("creationTimestamp") or "")
        return str(newest["metadata"]["name"])

    @asynccontextmanager
    async def _call(
        self,
        method: str,
        version: str,
        url: str,
        *,
        namespaced: bool = True,
        timeout: httpx.Timeout = _LIMITS,
        **options: Any,
    ) -> AsyncIterator[httpx.Response]:
        try:
            async with (await self._connected()).call_api(
                method,
                version=version,
                url=url,
                namespace=self.namespace if namespaced else None,
                timeout=timeout,
                **options,
            ) as response:
                yield response
        except (httpx.TransportError, kr8s.APITimeoutError) as error:
            raise LostError(f"{type(error).__name__} {error}".strip()) from error
        except kr8s.ServerError as error:
            assert error.response is not None
            status = error.response.status_code
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _BUSY:
                raise LostError(f"{status}: {error}") from error
            raise RefusedError(status, str(error)) from error

    async def _connected(self) -> Any:
        """The client, which belongs to one event loop."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            try:
                self._api = await kr8s.asyncio.api()
            except ValueError as error:
                raise ValueError(
                    f"No way to Kubernetes ({error}): name a kubeconfig by KUBECONFIG."
                ) from None
            self._loop = loop
        return self._api


def outcome_of(job: str, status: Manifest, log: str) -> Outcome:
    """How a RayJob ended: by Ray's word on the job where it ran, by KubeRay's where it did not."""
    message = " ".join((status.get("message") or "").split())
    said = status.get("jobStatus")
    if said in (JobStatus.SUCCEEDED, JobStatus.STOPPED):
        return outcome(job, JobStatus(said), None, message, log)
    code = _EXIT.search(message)
    if code is not None:
        return outcome(job, JobStatus.FAILED, int(code[1]), message, log)
    why = ": ".join(part for part in (status.get("reason"), message) if part)
    return ended(job, why or f"its state is {status.get('jobDeploymentStatus')}")


def _unique(name: str) -> str:
    ending = f"-{secrets.token_hex(4)}"
    return name[: LONGEST_NAME - len(ending)].rstrip("-") + ending
