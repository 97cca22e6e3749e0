"""Applications that are placed in one way or another, and stopped."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from bad_requests import body
from scripted_app import Calls, answer, placed, scripted


def test_packed_or_spread_a_question_gets_the_same_answer(cluster: None, tmp_path: Path) -> None:
    found = {}
    for placement in ("pack", "spread"):
        log = tmp_path / placement
        log.mkdir()
        with scripted(log, placement=placement) as base:
            found[placement] = placed(base, log, "Where?")
            calls = Calls(log, "ScriptedGenerator")
            answer(base, "Where on its own?", undivided=True)
            assert len(calls.pids) == 4 and len(set(calls.pids)) == 1
    packed, (generators, judges) = found["pack"]
    assert len(set(generators)) == len(set(judges)) == 1
    spread, (generators, judges) = found["spread"]
    # At each of four stages one call to each of two replicas.
    assert [len(generators), len(judges)] == [8, 8]
    assert len(set(generators)) == len(set(judges)) == 2
    assert packed == spread


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
