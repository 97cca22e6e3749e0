"""Watching a search over HTTP: every event, in chunks that the OpenAI client reads."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import ray
from bad_requests import ask, body
from replicas import deciding_later_stage, wait_for_new
from scripted_app import scripted
from scripted_engines import SLOW_S

from jobs.benchmarks.serve_chaos import replica_pids
from serve.handles import HandleSearcher
from stagebeam.inference.types import Prompt
from stagebeam.recipe import Autoscaling
from stagebeam.records import Message
from stagebeam.search import SearchSettings
from stagebeam.search.event_json import event_from_json
from stagebeam.search.events import (
    Answered,
    CandidateFinished,
    Event,
    Restarted,
    StageDecided,
    StageOpened,
)
from stagebeam.search.fold import Fold
from stagebeam.search.trace import Trace

SCALING = Autoscaling(num_cpus=0.25)
WATCH = {"include_events": True}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine-log")


@pytest.fixture(scope="module")
def url(cluster: None, log: Path) -> Iterator[str]:
    with scripted(log, generators=SCALING, judges=SCALING, candidates=3) as base_url:
        yield base_url


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)


def watch(client: openai.OpenAI, question: str, **search: Any) -> tuple[list[Any], list[Event]]:
    """The chunks with choices, and the events of those without."""
    chunks = list(
        client.chat.completions.create(
            model="scripted",
            messages=ask(question),
            stream=True,
            extra_body={"search": WATCH | search},
            timeout=90,
        )
    )
    events = [chunk.model_extra["event"] for chunk in chunks if "event" in chunk.model_extra]
    assert all(not chunk.choices for chunk in chunks if "event" in chunk.model_extra)
    return [chunk for chunk in chunks if chunk.choices], list(map(event_from_json, events))


async def test_nothing_but_the_answer_comes_to_a_gateway_whose_client_does_not_watch(
    url: str,
) -> None:
    searcher = HandleSearcher(ray.serve.get_deployment_handle("searcher", "stagebeam"))
    prompt = Prompt((Message("user", "Unwatched?"),), ())
    told = [e async for e in searcher.search(prompt, SearchSettings(candidates=3), watched=False)]
    assert [type(event) for event in told] == [Answered]


@pytest.mark.parametrize("method", ["greedy", "best_of_n", "sentence_beam", "stage_beam"])
def test_the_openai_client_reads_a_stream_with_events_that_come_to_the_trace(
    client: openai.OpenAI, url: str, method: str
) -> None:
    choices, events = watch(client, f"Watch {method}?", method=method)
    fold = Fold()
    for event in events:
        fold.add(event)
    last = events[-1]
    assert isinstance(last, Answered) and tuple(fold.stages) == last.trace.stages
    content = "".join(chunk.choices[0].delta.content or "" for chunk in choices)
    assert content == last.trace.conclusion
    assert choices[-1].choices[0].finish_reason == "stop"
    for key in (choices[0].id, last.trace.id):
        kept = httpx.get(f"{url}/v1/traces/{key}").json()
        assert Trace.model_validate_json(json.dumps(kept)) == last.trace


def test_a_stream_without_include_events_has_none(client: openai.OpenAI) -> None:
    choices, events = watch(client, "Plain?", include_events=False)
    assert choices and events == []


def test_a_candidate_is_seen_while_its_stage_is_still_being_decided(client: openai.OpenAI) -> None:
    moments: dict[type, float] = {}
    for chunk in client.chat.completions.create(
        model="scripted",
        messages=ask("slow to judge"),
        stream=True,
        extra_body={"search": WATCH | {"method": "stage_beam"}},
    ):
        if "event" in (chunk.model_extra or {}):
            event = event_from_json(chunk.model_extra["event"])  # type: ignore[index]
            moments.setdefault(type(event), time.monotonic())
    assert moments[CandidateFinished] - moments[StageOpened] > SLOW_S / 2
    assert moments[StageDecided] - moments[CandidateFinished] > SLOW_S / 2


def test_events_without_a_stream_are_refused(url: str) -> None:
    reply = httpx.post(f"{url}/v1/chat/completions", json=body(search=WATCH))
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "search")
    assert error["message"] == "search.include_events needs a stream; ask with stream: true."


def test_a_question_that_the_engine_refuses_is_an_error_in_the_stream(
    client: openai.OpenAI,
) -> None:
    with pytest.raises(openai.APIError, match="a marker of the chat template"):
        watch(client, "marker")


def test_who_stops_watching_ends_the_search(url: str, log: Path) -> None:
    before = set(log.iterdir())
    request = body("slow, then nobody", stream=True, search=WATCH)
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=request) as reply:
        opened = (line for line in reply.iter_lines() if "stage_opened" in line)
        assert '"visit": 0' in next(opened) and '"visit": 1' in next(opened)
        time.sleep(SLOW_S / 2)  # now the second stage is being written
    time.sleep(2.5)
    notes = [path.name.split("-")[0] for path in set(log.iterdir()) - before]
    assert (notes.count("cancelled"), notes.count("started")) == (1, 3)


def test_a_search_that_starts_over_tells_so_and_sends_its_answer_once(
    client: openai.OpenAI, log: Path
) -> None:
    calm, _ = watch(client, "slow restart")
    pids = replica_pids("searcher")
    before = set(log.iterdir())
    with ThreadPoolExecutor(1) as pool:
        watched = pool.submit(watch, client, "slow restart")
        while not deciding_later_stage(log, before, "ScriptedGenerator"):
            assert not watched.done()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        disturbed, events = watched.result(90)

    def deltas(chunks: list[Any]) -> list[Any]:
        return [chunk.choices[0].delta for chunk in chunks]

    assert deltas(disturbed) == deltas(calm)
    assert sum(isinstance(event, Restarted) for event in events) == 1
    fold = Fold()
    for event in events:
        fold.add(event)
    assert isinstance(events[-1], Answered) and tuple(fold.stages) == events[-1].trace.stages
    wait_for_new("searcher", pids)
