"""A stand-in for an API server with KubeRay's operator behind it, over real HTTP.

It keeps the objects that it is given and plays a RayJob's life, as the operator's sources have it:
a cluster for each try, the entrypoint run as a process of this machine, its output the log of the
submitter's container, its exit status in the words of Ray's job supervisor. It is no Kubernetes:
that manifests are ones which KubeRay takes is shown in tests/cluster.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token"
MOUNTED = "/etc/stagebeam/recipe.yaml"


@dataclass
class Try:
    """One cluster of a RayJob, and what its submitter wrote."""

    cluster: str
    log: bytes = b""
    over: bool = False


@dataclass
class StandIn:
    """What the stand-in holds, and how its jobs go."""

    folder: Path  # where a recipe is put that a ConfigMap holds
    run: str | None = None  # a shell command in place of the entrypoint
    retries: int = 0
    forbidden: set[str] = field(default_factory=set)  # plurals that may not be made
    absent: set[str] = field(default_factory=set)  # plurals that are not known
    never: str | None = None  # the reason why a job fails before it runs
    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    tries: dict[str, list[Try]] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def named(self, plural: str) -> list[str]:
        return [name for kind, name in self.objects if kind == plural]

    def make(self, plural: str, made: dict[str, Any]) -> Response:
        name = made["metadata"]["name"]
        if plural in self.absent:
            return refused(404, "the server could not find the requested resource")
        if plural in self.forbidden:
            return refused(403, f'{plural} is forbidden: User "u" cannot create it')
        if (plural, name) in self.objects:
            return refused(409, f'{plural} "{name}" already exists')
        self.objects[plural, name] = made
        if plural == "rayjobs":
            task = asyncio.get_running_loop().create_task(self._live(name, made))
            self._tasks.add(task)
        return JSONResponse(made, 201)

    async def _live(self, name: str, job: dict[str, Any]) -> None:
        status = job["status"] = {"jobDeploymentStatus": "Initializing"}
        if self.never is not None:
            status |= {
                "jobDeploymentStatus": "Failed",
                "reason": self.never,
                "message": "The cluster did not come up.",
            }
            return
        for number in range(1 + self.retries):
            attempt = Try(f"{name}-{number}")
            self.tries.setdefault(name, []).append(attempt)
            status["rayClusterName"] = attempt.cluster
            status |= {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
            code = await self._entrypoint(job, attempt)
            attempt.over = True
            if code == 0:
                status |= {"jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Complete"}
                return
            status |= {
                "jobStatus": "FAILED",
                "message": "Job entrypoint command failed with exit code "
                f"{code}, last available logs (truncated to 20,000 chars):\n{attempt.log.decode()}",
            }
            last = number == self.retries
            status["jobDeploymentStatus"] = "Failed" if last else "Retrying"
            status["reason"] = "AppFailed"

    async def _entrypoint(self, job: dict[str, Any], attempt: Try) -> int:
        (recipe,) = (
            o["data"]["recipe.yaml"] for (k, _), o in self.objects.items() if k == "configmaps"
        )
        mounted = self.folder / "mounted.yaml"
        mounted.write_text(recipe)
        entrypoint = job["spec"]["entrypoint"].replace(MOUNTED, shlex.quote(str(mounted)))
        process = await asyncio.create_subprocess_shell(
            self.run or entrypoint,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}",
                "TRY": str(len(self.tries[job["metadata"]["name"]])),
            },
        )
        assert process.stdout is not None
        while piece := await process.stdout.read(64):
            attempt.log += piece
        return await process.wait()

    def attempt(self, pod: str) -> Try | None:
        every = [attempt for tries in self.tries.values() for attempt in tries]
        return next((a for a in every if f"{a.cluster}-head" == pod), None)


def refused(status: int, said: str) -> JSONResponse:
    return JSONResponse({"kind": "Status", "message": said, "code": status}, status)


def api_server(held: StandIn) -> FastAPI:
    app = FastAPI()

    @app.middleware("http")
    async def authorised(request: Request, go_on: Any) -> Any:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return refused(401, "Unauthorized")
        return await go_on(request)

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"gitVersion": "v1.34.1"}

    @app.post("/apis/scheduling.k8s.io/v1/priorityclasses")
    async def make_class(made: dict[str, Any]) -> Response:
        return held.make("priorityclasses", made)

    @app.post("/api/v1/namespaces/{namespace}/configmaps")
    async def make_map(made: dict[str, Any]) -> Response:
        return held.make("configmaps", made)

    @app.post("/apis/ray.io/v1/namespaces/{namespace}/rayjobs")
    async def make_job(made: dict[str, Any]) -> Response:
        return held.make("rayjobs", made)

    @app.get("/apis/ray.io/v1/namespaces/{namespace}/rayjobs/{name}")
    async def get_job(name: str) -> Response:
        found = held.objects.get(("rayjobs", name))
        return JSONResponse(found) if found else refused(404, f'rayjobs "{name}" not found')

    @app.delete("/apis/ray.io/v1/namespaces/{namespace}/rayjobs/{name}")
    async def delete_job(name: str) -> Response:
        held.objects.pop(("rayjobs", name), None)
        return JSONResponse({"kind": "Status", "status": "Success"})

    @app.get("/api/v1/namespaces/{namespace}/pods")
    async def pods(request: Request) -> dict[str, Any]:
        wanted = dict(part.split("=") for part in request.query_params["labelSelector"].split(","))
        assert wanted["ray.io/node-type"] == "head"
        name = f"{wanted['ray.io/cluster']}-head"
        found = [name] if held.attempt(name) else []
        return {"items": [{"metadata": {"name": name}} for name in found]}

    @app.get("/api/v1/namespaces/{namespace}/pods/{pod}/log")
    async def log(pod: str, container: str, follow: bool = False) -> Response:
        assert container == "ray-job-submitter"
        attempt = held.attempt(pod)
        if attempt is None or (not attempt.log and not attempt.over):
            return refused(400, f'container "{container}" in pod "{pod}" is waiting to start')
        return StreamingResponse(grows(attempt, follow), media_type="text/plain")

    return app


async def grows(attempt: Try, follow: bool) -> AsyncIterator[bytes]:
    at = 0
    while True:
        over = attempt.over or not follow
        if len(attempt.log) > at:
            yield attempt.log[at:]
            at = len(attempt.log)
        elif over:
            return
        await asyncio.sleep(0.02)


def kubeconfig(path: Path, url: str, token: str = TOKEN) -> Path:
    """A file that leads there."""
    settings = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": {"token": token}}],
    }
    path.write_text(yaml.safe_dump(settings))
    return path
