"""What docs/operations.md promises of an upgrade: no question is lost to it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import scripted_engines
from bad_requests import body
from ray import serve

from serve.app import APP, build_app, serving
from stagebeam.recipe import Autoscaling, EngineConfig, JudgeConfig, SearchConfig, ServeConfig

PATIENCE_S = 120.0
ASKING = 4
SEARCH = SearchConfig(candidates=3, max_new_tokens=32)
LOADERS = {
    "generator_loader": scripted_engines.load_generator,
    "judge_loader": scripted_engines.load_judge,
}


def version(folder: Path, replicas: int) -> ServeConfig:
    """Engines that leave their marks in `folder`."""
    folder.mkdir()
    scaling = Autoscaling(num_cpus=0.1, min_replicas=replicas, max_replicas=replicas)
    return ServeConfig(
        port=0,
        model_name="scripted",
        generator=EngineConfig(model=str(folder), scaling=scaling),
        judge=JudgeConfig(model=str(folder), scaling=scaling),
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_new_version_takes_over_without_losing_a_question(
    cluster: None, tmp_path: Path, replicas: int
) -> None:
    """With one replica questions wait while there is none."""
    old, new = (version(tmp_path / name, replicas) for name in ("old", "new"))
    over = threading.Event()

    def ask(url: str, number: int) -> list[int]:
        statuses = []
        while not over.is_set():
            request = body(f"steady {number} {len(statuses)}")
            reply = httpx.post(f"{url}/v1/chat/completions", json=request, timeout=PATIENCE_S)
            statuses.append(reply.status_code)
        return statuses

    def asked(folder: str) -> int:
        return len(list((tmp_path / folder).glob("started-ScriptedGenerator-*")))

    with serving(old, SEARCH, **LOADERS) as url, ThreadPoolExecutor(ASKING) as pool:
        asking = [pool.submit(ask, url, number) for number in range(ASKING)]
        try:
            while not asked("old"):
                time.sleep(0.1)
            serve.run(build_app(new, SEARCH, **LOADERS), name=APP)
            before = asked("old")
            seen, until = asked("new"), time.monotonic() + PATIENCE_S
            while asked("new") < seen + 20:
                assert time.monotonic() < until
                time.sleep(0.1)
        finally:
            over.set()
        statuses = [status for each in asking for status in each.result()]
    assert set(statuses) == {200}
    assert asked("old") - before <= 4 * ASKING, "what had begun on the old one"
