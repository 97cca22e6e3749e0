"""Where the calls of a question go, and what becomes of it when replicas go; real Serve."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from scripted_app import PATIENCE_S, answer, placed, scripted

from jobs.benchmarks.serve_chaos import replica_pids
from stagebeam.recipe import LightScaling


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine-log")


@pytest.fixture(scope="module")
def url(cluster: None, log: Path) -> Iterator[str]:
    gateways = LightScaling(min_replicas=2, max_replicas=2)
    with scripted(log, placement="pack", gateway=gateways) as base:
        yield base


def test_a_question_stays_with_its_replica_and_finds_another_when_that_is_gone(
    url: str, log: Path
) -> None:
    def home() -> int:
        _, (generators, judges) = placed(url, log, "Whose?")
        # Four stages, and one replica of each engine.
        assert (len(generators), len(judges), len(set(judges))) == (4, 4, 1)
        (pid,) = set(generators)
        return pid

    first = home()
    assert home() == first
    os.kill(first, signal.SIGKILL)
    second = home()
    assert second != first and home() == second


def test_calls_that_a_search_makes_at_once_do_not_wait_for_each_other(url: str) -> None:
    """Each newcomer is judged in a call of its own; Serve's own router forgets some of those."""
    for number in range(5):
        found = answer(url, f"At once {number}?", tournament="arrival", candidates=8)
        assert len(found["trace"]["stages"][0]["matches"]) == 28


def test_every_gateway_finds_every_trace(url: str) -> None:
    assert len(replica_pids("gateway")) == 2
    found = answer(url, "Which?")
    with httpx.Client() as client:  # the proxy draws a gateway for each request
        for _ in range(20):
            assert client.get(f"{url}/v1/traces/{found['id']}").json() == found["trace"]
        assert client.get(f"{url}/v1/traces/none").status_code == 404


@pytest.mark.parametrize("deployment", ["generator", "judge"])
def test_a_replica_whose_engine_is_broken_is_replaced(url: str, log: Path, deployment: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while len(before := replica_pids(deployment)) < 2:  # others may have died
        assert time.monotonic() < until
    broken, well = before
    (log / f"broken-{broken}").touch()
    while broken in (now := replica_pids(deployment)) or len(now) < 2:
        assert time.monotonic() < until
        time.sleep(0.5)
    assert well in now
    answer(url, "Still?")
