"""Where the calls of a question go, and what becomes of it when replicas go; real Serve."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import scripted_engines
from bad_requests import body

from jobs.benchmarks.serve_chaos import replica_pids
from jobs.benchmarks.serve_load import decisions
from serve.app import serving
from stagebeam.recipe import (
    Autoscaling,
    EngineConfig,
    JudgeConfig,
    LightScaling,
    SearchConfig,
    ServeConfig,
)

TWO = Autoscaling(num_cpus=0.2, min_replicas=2, max_replicas=2)
PATIENCE_S = 60.0


@contextmanager
def scripted(log: Path, **settings: Any) -> Iterator[str]:
    config = ServeConfig(
        port=0,
        model_name="scripted",
        generator=EngineConfig(model=str(log), scaling=TWO),
        judge=JudgeConfig(model=str(log), scaling=TWO),
        **settings,
    )
    with serving(
        config,
        SearchConfig(candidates=6, max_new_tokens=32),
        generator_loader=scripted_engines.load_generator,
        judge_loader=scripted_engines.load_judge,
    ) as url:
        yield url


def answer(url: str, question: str) -> dict[str, Any]:
    request = body(question, search={"include_trace": True})
    reply = httpx.post(f"{url}/v1/chat/completions", json=request, timeout=PATIENCE_S)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


class Calls:
    """Who answered the calls of one engine since this was made."""

    def __init__(self, log: Path, engine: str) -> None:
        self._log, self._engine, self._before = log, engine, set(log.iterdir())

    @property
    def pids(self) -> list[int]:
        new = (path.name.split("-") for path in set(self._log.iterdir()) - self._before)
        return [int(pid) for what, who, pid, *_ in new if (what, who) == ("started", self._engine)]


def test_packed_or_spread_a_question_gets_the_same_answer(cluster: None, tmp_path: Path) -> None:
    packed, spread = tmp_path / "packed", tmp_path / "spread"
    found = {}
    for log, placement in ((packed, "pack"), (spread, "spread")):
        log.mkdir()
        with scripted(log, placement=placement) as url:
            calls = [Calls(log, f"Scripted{who}") for who in ("Generator", "Judge")]
            reply = answer(url, "Where?")
            found[placement] = (decisions(reply["trace"]), *(len(set(c.pids)) for c in calls))
            # Four stages: one call to each engine, or one to each replica of it.
            assert [len(c.pids) for c in calls] == [4, 4] if placement == "pack" else [8, 8]
    assert found["pack"][1:] == (1, 1) and found["spread"][1:] == (2, 2)
    assert found["pack"][0] == found["spread"][0]


def test_a_question_whose_replica_is_gone_finds_another_and_stays_there(
    cluster: None, tmp_path: Path
) -> None:
    with scripted(tmp_path, placement="pack") as url:

        def home() -> int:
            calls = Calls(tmp_path, "ScriptedGenerator")
            answer(url, "Whose?")
            (pid,) = set(calls.pids)
            return pid

        first = home()
        assert home() == first
        os.kill(first, signal.SIGKILL)
        second = home()
        assert second != first and home() == second


def test_every_gateway_finds_every_trace(cluster: None, tmp_path: Path) -> None:
    gateways = LightScaling(min_replicas=2, max_replicas=2)
    with scripted(tmp_path, gateway=gateways) as url:
        assert len(replica_pids("gateway")) == 2
        found = answer(url, "Which?")
        # One connection to the proxy, which draws a gateway for each request.
        with httpx.Client() as client:
            for _ in range(20):
                reply = client.get(f"{url}/v1/traces/{found['id']}")
                assert reply.json() == found["trace"]
            assert client.get(f"{url}/v1/traces/none").status_code == 404


@pytest.mark.parametrize("deployment", ["generator", "judge"])
def test_a_replica_whose_engine_is_broken_is_replaced(
    cluster: None, tmp_path: Path, deployment: str
) -> None:
    with scripted(tmp_path) as url:
        before = replica_pids(deployment)
        (tmp_path / f"broken-{before[0]}").touch()
        until = time.monotonic() + PATIENCE_S
        while before[0] in (now := replica_pids(deployment)) or len(now) < 2:
            assert time.monotonic() < until
            time.sleep(0.5)
        assert before[1] in now
        answer(url, "Still?")


def test_a_server_that_is_stopped_ends_what_it_began_and_takes_nothing_new(
    cluster: None, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with scripted(tmp_path) as url:
            calls = Calls(tmp_path, "ScriptedGenerator")
            under_way = pool.submit(answer, url, "slow")
            while len(calls.pids) < 2:
                assert not under_way.done()
            refusals: list[httpx.Response] = []

            def ask_once_more() -> None:
                time.sleep(0.5)
                refusals.append(httpx.post(f"{url}/v1/chat/completions", json=body()))
                refusals.append(httpx.get(f"{url}/healthz"))

            late = threading.Thread(target=ask_once_more)
            late.start()
        late.join()
        assert under_way.result()["trace"]["conclusion"]
    assert [reply.status_code for reply in refusals] == [503, 503]
    assert refusals[0].headers["retry-after"] == "5"
    assert refusals[0].json()["error"]["code"] == "draining"
