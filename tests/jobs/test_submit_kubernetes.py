"""Jobs submitted to Kubernetes by the command, followed, left, stopped, tried again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from http_server import served
from kubernetes_api import StandIn, api_server, kubeconfig
from shaky_wire import ShakyWire

from jobs.render import render
from jobs.submission.kubernetes import outcome_of
from stagebeam.data.shards import iter_examples

ROOT = Path(__file__).resolve().parents[2]
LINES = [f"line {number}" for number in range(30)]
COUNTING = "for n in $(seq 0 29); do echo line $n; sleep 0.1; done"


@dataclass
class World:
    folder: Path
    held: StandIn
    url: str

    def command(self, *words: str | Path) -> tuple[list[str], dict[str, str]]:
        env = os.environ | {
            "KUBECONFIG": str(self.folder / "kubeconfig"),
            "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}",
        }
        command = [sys.executable, "-m", "jobs.submit", *map(str, words)]
        return [*command, "--to", str(self.folder / "cluster.yaml")], env

    def submit(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        args, env = self.command(*words)
        return subprocess.run(args, env=env, capture_output=True, text=True, timeout=240)

    def recipe(self, rows: int = 8) -> Path:
        settings = {
            "name": "submitted",
            "model": {"path": "hub/none"},
            "data": {
                "shards": str(self.folder / "shards"),
                "sources": [{"kind": "scenes", "rows": rows}],
            },
        }
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path


@contextmanager
def world(folder: Path, **settings: object) -> Iterator[World]:
    shutil.copy(ROOT / "cluster" / "kubernetes.yaml", folder / "base.yaml")
    storage = {"mount_path": str(folder)}
    cluster = {"extends": "base.yaml", "storage": storage, "namespace": "lab"}
    (folder / "cluster.yaml").write_text(yaml.safe_dump(cluster))
    held = StandIn(folder, **settings)  # type: ignore[arg-type]
    with served(api_server(held)) as url:
        kubeconfig(folder / "kubeconfig", url)
        yield World(folder, held, url)


def test_the_job_runs_as_rendered_and_its_log_and_status_are_the_commands(tmp_path: Path) -> None:
    with world(tmp_path) as here:
        here.held.objects["priorityclasses", "stagebeam-jobs"] = {}
        done = here.submit("prepare", here.recipe(), "--fresh")
        (name,) = here.held.named("rayjobs")
        made = here.held.objects["rayjobs", name]
    assert done.returncode == 0, done.stderr
    assert "8" in done.stdout.split("usable")[1]
    assert f"Job {name} has succeeded." in done.stderr
    assert len(list(iter_examples(tmp_path / "shards"))) == 8
    *_, rendered = render(here.recipe(), tmp_path / "cluster.yaml", "prepare", ["--fresh"])
    assert name.startswith(f"{rendered['metadata']['name']}-")
    assert made["spec"] == rendered["spec"]


def test_a_job_that_fails_ends_the_command_with_its_status_and_reason(tmp_path: Path) -> None:
    with world(tmp_path, run="echo 'error: No rows.'; exit 3") as here:
        failed = here.submit("prepare", here.recipe())
    assert failed.returncode == 3
    assert failed.stderr.splitlines()[-1].endswith("failed with exit status 3: No rows.")
    assert failed.stdout == "error: No rows.\n"


def test_a_further_try_is_followed_from_its_own_start(tmp_path: Path) -> None:
    run = "echo try $TRY; sleep 0.5; [ $TRY = 2 ]"
    with world(tmp_path, run=run, retries=2) as here:
        done = here.submit("prepare", here.recipe())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "try 2"
    assert "Another try" in done.stderr


def test_a_job_is_left_and_followed_again_over_a_connection_that_breaks(tmp_path: Path) -> None:
    with world(tmp_path, run=COUNTING) as here, ShakyWire(here.url) as wire:
        left = here.submit("prepare", here.recipe(), "--detach")
        assert left.returncode == 0, left.stderr
        kubeconfig(tmp_path / "kubeconfig", wire.url)
        args, env = here.command("--attach", left.stdout.strip(), "--from-line", "2")
        follower = subprocess.Popen(
            args, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        wait_until(lambda: b"line 5" in here.held.tries[left.stdout.strip()][0].log)
        wire.cut()
        wait_until(lambda: b"line 12" in here.held.tries[left.stdout.strip()][0].log)
        wire.mend()
        shown, said = follower.communicate(timeout=120)
    assert follower.returncode == 0, said
    assert shown.splitlines() == LINES[2:]


@pytest.mark.parametrize("stop", [False, True])
def test_ctrl_c_leaves_the_job_or_stops_it(tmp_path: Path, stop: bool) -> None:
    with world(tmp_path, run="echo begun; sleep 60") as here:
        flags = ("--stop-on-interrupt",) if stop else ()
        args, env = here.command("prepare", here.recipe(), *flags)
        follower = subprocess.Popen(
            args, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert follower.stdout is not None and follower.stdout.readline() == "begun\n"
        follower.send_signal(signal.SIGINT)
        _, said = follower.communicate(timeout=60)
        (name,) = here.held.tries
        assert bool(here.held.named("rayjobs")) is not stop
    assert follower.returncode == 130
    wanted = f"Job {name} was stopped." if stop else f"--attach {name} --from-line 1"
    assert wanted in said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"absent": {"rayjobs"}}, "KubeRay is not there"),
        ({"forbidden": {"rayjobs"}}, 'refuses (403): rayjobs is forbidden: User "u" cannot'),
        ({"never": "DeadlineExceeded"}, "failed: DeadlineExceeded: The cluster did not come up."),
    ],
)
def test_what_kubernetes_refuses_is_one_sentence(
    tmp_path: Path, settings: dict[str, object], said: str
) -> None:
    with world(tmp_path, **settings) as here:
        failed = here.submit("prepare", here.recipe())
    assert failed.returncode in (1, 2) and failed.stdout == ""
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("error: ") and said in last


def test_a_priority_class_that_one_may_not_make_is_a_warning(tmp_path: Path) -> None:
    with world(tmp_path, run="true", forbidden={"priorityclasses"}) as here:
        done = here.submit("prepare", here.recipe())
    assert done.returncode == 0
    assert "warning: you may not make the PriorityClass stagebeam-jobs" in done.stderr


def test_other_mistakes_are_one_sentence(tmp_path: Path) -> None:
    with world(tmp_path) as here:
        recipe = here.recipe()
        kubeconfig(tmp_path / "kubeconfig", here.url, token="another")
        assert "refuses (401): Unauthorized" in here.submit("prepare", recipe).stderr
        kubeconfig(tmp_path / "kubeconfig", here.url)
        assert "submit validate to a head's address" in here.submit("validate", recipe).stderr
        unknown = here.submit("--attach", "gone")
        assert unknown.stderr == "error: There is no RayJob gone in the namespace lab.\n"
        (tmp_path / "kubeconfig").unlink()
        assert "name a kubeconfig by KUBECONFIG" in here.submit("prepare", recipe).stderr
        shutil.copy(ROOT / "cluster" / "on-premises.yaml", tmp_path / "cluster.yaml")
        assert "is for `ray up`" in here.submit("prepare", recipe).stderr
        assert not here.held.objects


def test_an_ended_job_is_told_by_rays_word_where_it_ran() -> None:
    def end(**status: str) -> tuple[int, str]:
        ended = outcome_of("j", status, "error: Why.\n")
        return ended.status, ended.sentence

    ran = "Job entrypoint command failed with exit code -9, last available logs"
    assert end(jobStatus="SUCCEEDED", jobDeploymentStatus="Complete") == (0, "Job j has succeeded.")
    assert end(jobStatus="STOPPED", jobDeploymentStatus="Failed") == (1, "Job j was stopped.")
    assert end(jobStatus="FAILED", message=ran) == (137, "Job j failed by signal 9: Why.")
    assert end(reason="ValidationFailed", message="No\nspec.") == (
        1,
        "Job j failed: ValidationFailed: No spec.",
    )
    assert end(jobDeploymentStatus="Failed") == (1, "Job j failed: its state is Failed")


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
