"""Replicas come with questions and go without them, and no search is lost to that."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import scripted_engines
from bad_requests import body
from ray import serve

from jobs.benchmarks.serve_chaos import replica_pids
from serve.app import APP, serving
from stagebeam.recipe import Autoscaling, EngineConfig, JudgeConfig, ServeConfig
from stagebeam.search_config import SearchConfig

PATIENCE_S = 240.0
QUICK = {"num_cpus": 0.2, "upscale_delay_s": 1.0, "downscale_delay_s": 5.0}
# While its load is on, a question is with the generator half of the time, and half with the judge.
LOAD = 24


def running() -> dict[str, int]:
    """Replicas by deployment, from Serve's status."""
    deployments = serve.status().applications[APP].deployments
    return {name: state.replica_states.get("RUNNING", 0) for name, state in deployments.items()}


def until(found: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not found():
        assert time.monotonic() < deadline, f"{what}: {running()}"
        time.sleep(0.2)


def calls(log: Path, what: str) -> Counter[int]:
    """How many calls of each generator's process."""
    names = (path.name.split("-") for path in log.glob(f"{what}-ScriptedGenerator-*"))
    return Counter(int(pid) for _, _, pid, _ in names)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_replicas_follow_the_questions_and_a_search_on_a_replica_that_goes_ends(
    cluster: None, tmp_path: Path
) -> None:
    config = ServeConfig(
        port=0,
        model_name="scripted",
        placement="pack",
        generator=EngineConfig(
            model=str(tmp_path), scaling=Autoscaling(max_replicas=3, target_questions=4, **QUICK)
        ),
        judge=JudgeConfig(
            model=str(tmp_path), scaling=Autoscaling(max_replicas=2, target_questions=8, **QUICK)
        ),
    )
    over = threading.Event()
    seen: list[tuple[int, int]] = []

    def ask(url: str, question: str, **search: Any) -> httpx.Response:
        request = body(question, search=search)
        return httpx.post(f"{url}/v1/chat/completions", json=request, timeout=PATIENCE_S)

    def load(url: str, number: int) -> list[int]:
        statuses = []
        while not over.is_set():
            statuses.append(ask(url, f"slow {number} {len(statuses)}").status_code)
        return statuses

    def both() -> tuple[int, int]:
        now = running()
        if not seen or seen[-1] != (now["generator"], now["judge"]):
            seen.append((now["generator"], now["judge"]))
        return seen[-1]

    with (
        serving(
            config,
            SearchConfig(candidates=3, max_new_tokens=32),
            generator_loader=scripted_engines.load_generator,
            judge_loader=scripted_engines.load_judge,
        ) as url,
        ThreadPoolExecutor(LOAD) as pool,
    ):
        assert both() == (1, 1)
        loading = [pool.submit(load, url, number) for number in range(LOAD)]
        try:
            until(lambda: both() == (3, 2), "under load")
        finally:
            over.set()
        assert {status for each in loading for status in each.result()} == {200}
        # As many as one replica takes, on all three: two of these replicas will go meanwhile.
        before = calls(tmp_path, "started")
        patient = [pool.submit(ask, url, f"patient {i}", method="greedy") for i in range(4)]
        until(lambda: both() == (1, 1), "idle")
        assert [reply.result().status_code for reply in patient] == [200] * 4
        # What Serve does not count any more is there until its call has ended.
        until(lambda: len(replica_pids("generator")) == 1, "drained")
        (left,) = replica_pids("generator")
        gone = calls(tmp_path, "finished") - before
        assert sum(gone.values()) == 4, "none was begun again"
        assert set(gone) - {left}, "none was on a replica that went"
    print("generator and judge replicas:", seen)
