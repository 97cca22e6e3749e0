"""The same application from files: `serve build`, `serve deploy`, and what lies in serve/config."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from ray_nodes import free_port
from real_models import write_model

from serve.deploy_config import FOLDER, deploy_config, written
from stagebeam.recipe import load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "jobs" / "recipes").glob("*.yaml"))
BIN = Path(sys.executable).parent
PATIENCE_S = 240.0


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_each_file_is_what_its_recipe_derives(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    text = written(recipe.relative_to(ROOT))
    there = FOLDER / recipe.name
    assert there.exists() == (load_recipe(recipe).serve is not None)
    assert text is None or there.read_text() == text


def test_every_file_has_its_recipe() -> None:
    assert {path.name for path in FOLDER.iterdir()} <= {path.name for path in RECIPES}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Of a tiny model, with a port of its own."""
    engine = {"model": write_model(tmp_path / "tiny"), "scaling": {"num_cpus": 0.3}}
    settings = {
        "name": "deployed",
        "model": {"path": "tiny"},
        "data": {"shards": "shards"},
        "serve": {"port": free_port(), "generator": engine, "judge": engine},
        "search": {"candidates": 2, "max_new_tokens": 8},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def cluster_env(recipe: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A head node of our own, as `ray start` makes it."""
    gcs, dashboard, client = free_port(), free_port(), free_port()
    env = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "STAGEBEAM_RECIPE": str(recipe),
    }
    start = [BIN / "ray", "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"]
    start += [
        f"--port={gcs}",
        f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}",
    ]
    start += ["--dashboard-agent-listen-port=0", f"--object-store-memory={200 << 20}"]
    # Not where other sessions on this machine would look for a cluster to join.
    folder = tempfile.mkdtemp(prefix="stagebeam-ray-", dir="/tmp")
    start += [f"--temp-dir={folder}"]
    with (tmp_path / "ray.log").open("w") as log:
        head = subprocess.Popen(start, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        yield env
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def command(env: dict[str, str], *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "serve", *words], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def deployed(env: dict[str, str], config: Path, url: str, name: str) -> list[str]:
    """Deploy the file, again until the cluster takes it, and ask; the deployments' names."""
    until = time.monotonic() + PATIENCE_S
    while (done := command(env, "deploy", config)).returncode:
        assert time.monotonic() < until, done.stdout + done.stderr
        time.sleep(1)
    status = said = ""
    while status != "RUNNING":
        assert status != "DEPLOY_FAILED" and time.monotonic() < until, said
        time.sleep(1)
        said = command(env, "status").stdout
        found = yaml.safe_load(said) or {}
        application = found.get("applications", {}).get(name, {})
        status = application.get("status", "")
    assert httpx.get(f"{url}/healthz", timeout=60).json()["status"] == "ok"
    body = {"model": "stagebeam", "messages": [{"role": "user", "content": "Which colour ?"}]}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    return sorted(application["deployments"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_files_of_both_kinds_deploy_the_application(
    recipe: Path, cluster_env: dict[str, str], tmp_path: Path
) -> None:
    serve_config = load_recipe(recipe).serve
    assert serve_config is not None
    url = f"http://127.0.0.1:{serve_config.port}"
    names = ["gateway", "generator", "judge", "searcher"]

    derived = tmp_path / "derived.yaml"
    derived.write_text(written(recipe) or "")
    assert deployed(cluster_env, derived, url, "stagebeam") == names

    built = tmp_path / "built.yaml"
    done = command(cluster_env, "build", "serve.built:app", "--output-path", built)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(built.read_text())
    # Of the options in the file, some that Serve would otherwise choose differently.
    of = {d["name"]: d for d in config["applications"][0]["deployments"]}
    assert sorted(of) == names
    scaling = of["generator"]["autoscaling_config"]
    assert scaling["policy"]["policy_function"] == "serve.scaling.by_questions"
    config["http_options"] = deploy_config(load_recipe(recipe), recipe)["http_options"]
    built.write_text(json.dumps(config))
    assert deployed(cluster_env, built, url, "app1") == names
