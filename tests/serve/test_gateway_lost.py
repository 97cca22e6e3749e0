"""The gateway dies amid questions, and then the proxy before it: what was under way fails in a way
that tells a client to ask again, and whoever does has the answer that there is in calm."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from bad_requests import body
from scripted_app import scripted
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_exponential
from waiting import wait_until

from jobs.benchmarks.serve_chaos import replica_pids
from jobs.benchmarks.serve_load import arrivals, ask_at, decisions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

QUESTIONS, RATE = 90, 2.0  # a second
PATIENCE_S = 300.0  # of a client, all its attempts together


class AgainError(Exception):
    """What a client may ask again after: a connection that broke, or a status from 500 on."""


@dataclass
class Client:
    """Asks again where it may, and counts what it heard."""

    url: str
    under_way: int = 0
    heard: Counter[int | str] = field(default_factory=Counter)  # statuses, or the transport's error
    answered: Counter[str] = field(default_factory=Counter)  # times, by question
    said: dict[str, str] = field(default_factory=dict)

    async def ask(self, http: httpx.AsyncClient, asked: dict[str, Any], due: float) -> None:
        await asyncio.sleep(due)
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(AgainError),
            wait=wait_exponential(multiplier=0.5, max=5),
            stop=stop_after_delay(PATIENCE_S),
            reraise=True,
        ):
            with attempt:
                self.under_way += 1
                try:
                    await self._once(http, asked)
                finally:
                    self.under_way -= 1

    async def _once(self, http: httpx.AsyncClient, asked: dict[str, Any]) -> None:
        try:
            reply = await http.post(f"{self.url}/v1/chat/completions", json=asked)
        except httpx.TransportError as error:
            self.heard[type(error).__name__] += 1
            raise AgainError from error
        self.heard[reply.status_code] += 1
        if reply.status_code >= 500:
            raise AgainError(reply.text)
        assert reply.status_code == 200, reply.text
        question = asked["messages"][0]["content"][0]["text"]
        self.answered[question] += 1
        self.said[question] = decisions(reply.json()["trace"])


def proxy_pids() -> list[int]:
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    actors = [ray.get_actor(n, "serve") for n in names if n.startswith("SERVE_PROXY_ACTOR")]
    asked: list[Any] = [actor.__ray_call__.remote(lambda self: os.getpid()) for actor in actors]
    return [int(pid) for pid in ray.get(asked, timeout=30)]


async def kill_amid(client: Client, pids: Callable[[], list[int]], answered: int) -> Counter[Any]:
    """Kill what answers under these ids once so many questions are answered and others are under
    way; what clients heard between that and the next ten answers, answers left out."""
    found = await asyncio.to_thread(pids)
    assert len(found) == 1
    await until(lambda: len(client.answered) >= answered and client.under_way >= 2)
    before = client.heard.copy()
    os.kill(found[0], signal.SIGKILL)
    there = len(client.answered)
    await until(lambda: len(client.answered) >= there + 10)
    heard = client.heard - before
    del heard[200]
    return heard


async def until(true: Callable[[], bool]) -> None:
    """In this loop's own thread, as what is looked at changes here."""
    limit = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < limit
        await asyncio.sleep(0.01)


async def test_whoever_asks_again_has_each_answer_once(cluster: None, tmp_path: Path) -> None:
    bodies = [
        body(f"steady question {number}", search={"include_trace": True, "seed": number})
        for number in range(QUESTIONS)
    ]
    due = arrivals(RATE, QUESTIONS, 0)
    with scripted(tmp_path, candidates=3) as url:
        calm = await ask_at(url, bodies, due)
        client = Client(url)
        async with httpx.AsyncClient(timeout=PATIENCE_S) as http:
            asking = asyncio.gather(
                *(client.ask(http, asked, at) for asked, at in zip(bodies, due, strict=True))
            )
            began = time.monotonic()
            gateway = await kill_amid(client, lambda: replica_pids("gateway"), 15)
            proxy = await kill_amid(client, proxy_pids, 45)
            await asking
            seconds = time.monotonic() - began
        await asyncio.to_thread(wait_until, lambda: len(replica_pids("gateway")) == 1)
    print(
        f"gateway lost: {QUESTIONS} questions in {seconds:.0f} s, heard of the gateway's end "
        f"{dict(gateway)}, of the proxy's {dict(proxy)}, in all {dict(client.heard)}"
    )
    assert gateway and proxy, "nobody was under way"
    assert set(client.answered.values()) == {1} and len(client.answered) == QUESTIONS
    texts = [asked["messages"][0]["content"][0]["text"] for asked in bodies]
    assert [client.said[text] for text in texts] == [reply.decisions for reply in calm]
