"""The served application over real Ray Serve and HTTP; only the engines are scripted."""

from __future__ import annotations

import asyncio
import itertools
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
import scripted_engines
from bad_requests import BAD_REQUESTS, ask, body, data_url
from local_app import LIMITS
from replicas import calls_in_flight, deciding_later_stage, wait_for_new
from scripted_app import scripted

from jobs.benchmarks.serve_chaos import replica_pids
from serve.handles import HandleGenerator
from stagebeam.inference.types import Candidate, GenerateRequest, Prompt, Sampling
from stagebeam.recipe import (
    Autoscaling,
)
from stagebeam.records import Message
from stagebeam.search.trace import Trace

SCALING = Autoscaling(num_cpus=0.25)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine-log")


@pytest.fixture(scope="module")
def url(cluster: None, log: Path) -> Iterator[str]:
    pair = Autoscaling(num_cpus=0.25, min_replicas=2, max_replicas=2)
    with scripted(log, generators=pair, judges=SCALING, candidates=3, limits=LIMITS) as base_url:
        yield base_url


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)


def post(url: str, json: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=json, timeout=60)


def test_the_openai_client_gets_conclusion_reasoning_and_usage(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="scripted", messages=ask("Which colour?", data_url())
    )
    message = reply.choices[0].message
    assert message.content == "conclusion red"
    assert message.model_extra == {
        "reasoning_content": "<SUMMARY> summary red </SUMMARY>\n<CAPTION> caption red </CAPTION>\n"
        "<REASONING> reasoning red </REASONING>"
    }
    assert reply.choices[0].finish_reason == "stop"
    usage = reply.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (40, 60, 100)
    assert usage.model_extra is not None
    assert usage.model_extra["search"]["sequential_passes"] == 20


def test_streaming_sends_each_stage_and_adds_up_to_the_whole_reply(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="scripted", messages=ask("Stream?"))
    for method in ("stage_beam", "best_of_n"):
        chunks = list(
            client.chat.completions.create(
                model="scripted",
                messages=ask("Stream?"),
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"search": {"method": method, "include_trace": True}},
            )
        )
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        reasoning = [getattr(delta, "reasoning_content", None) for delta in deltas]
        content = "".join(delta.content or "" for delta in deltas)
        assert len([piece for piece in reasoning if piece]) == 3
        if method == "stage_beam":
            assert content == whole.choices[0].message.content
            extra = whole.choices[0].message.model_extra or {}
            assert "".join(filter(None, reasoning)) == extra["reasoning_content"]
        assert chunks[-2].choices[0].finish_reason == "stop"
        trace = Trace.model_validate(chunks[-2].model_extra["trace"])  # type: ignore[index]
        assert trace.conclusion == content
        assert chunks[-1].usage is not None and not chunks[-1].choices
        assert len({chunk.id for chunk in chunks}) == 1


def test_a_stage_arrives_before_the_next_one_is_decided(client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(
        model="scripted",
        messages=ask("slow stream"),
        stream=True,
        extra_body={"search": {"method": "stage_beam", "candidates": 1}},
    )
    moments = [
        time.monotonic()
        for chunk in chunks
        if getattr(chunk.choices[0].delta, "reasoning_content", None)
    ]
    assert all(
        late - early > scripted_engines.SLOW_S / 2 for early, late in itertools.pairwise(moments)
    )


def test_search_fields_and_openai_fields_reach_the_search(url: str) -> None:
    search = {
        "method": "best_of_n",
        "candidates": 5,
        "tournament": "chain",
        "temperature": 0.9,
        "top_p": 0.5,
        "seed": 7,
        "max_new_tokens": 16,
        "include_trace": True,
    }
    trace = Trace.model_validate(post(url, body(search=search)).json()["trace"])
    assert (trace.method, trace.candidates, trace.tournament) == ("best_of_n", 5, "chain")
    assert (trace.temperature, trace.top_p, trace.seed) == (0.9, 0.5, 7)
    assert (trace.generator, trace.judge) == ("ScriptedGenerator-1", "ScriptedJudge-1")

    reply = post(
        url,
        body(
            temperature=0,
            top_p=0.7,
            seed=9,
            max_tokens=16,
            n=1,
            search={"candidates": 1, "include_trace": True},
        ),
    )
    trace = Trace.model_validate(reply.json()["trace"])
    assert (trace.temperature, trace.top_p, trace.seed, trace.candidates) == (0, 0.7, 9, 1)

    search = {
        "candidates": {"CAPTION": 2, "REASONING": 3},
        "tournament": "arrival",
        "early_stop_margin": 100.0,
        "budget": "adaptive",
        "max_answer_tokens": 500,
        "max_seconds": 60,
        "include_trace": True,
    }
    trace = Trace.model_validate(post(url, body(search=search)).json()["trace"])
    assert [len(stage.candidates) for stage in trace.stages] == [1, 2, 3, 1]
    assert (trace.tournament, trace.budget, trace.early_stop_margin) == ("arrival", "adaptive", 100)
    assert (trace.max_answer_tokens, trace.max_seconds, trace.limited) == (500, 60, None)


def test_a_follow_up_question_carries_the_earlier_answer_with_its_stages(
    client: openai.OpenAI,
) -> None:
    first = client.chat.completions.create(model="scripted", messages=ask("First?"))
    messages = [*ask("First?"), first.choices[0].message, *ask("Second?")]
    reply = client.chat.completions.create(
        model="scripted", messages=messages, extra_body={"search": {"include_trace": True}}
    )
    trace = Trace.model_validate(reply.model_extra["trace"])  # type: ignore[index]
    assert trace.messages[1].text.startswith("<SUMMARY> summary")
    assert trace.messages[1].text.endswith("</CONCLUSION>")


def test_models_traces_health_and_page(url: str, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["scripted"]
    reply = post(url, body(search={"include_trace": True})).json()
    for key in (reply["id"], reply["trace"]["id"]):
        assert httpx.get(f"{url}/v1/traces/{key}").json() == reply["trace"]
    health = httpx.get(f"{url}/healthz")
    assert (health.status_code, health.json()) == (
        200,
        {"status": "ok", "generator": "ScriptedGenerator-1", "judge": "ScriptedJudge-1"},
    )
    assert httpx.get(f"{url}/livez").json() == {"status": "ok"}
    assert httpx.get(f"{url}/openapi.json").json()["openapi"].startswith("3.1")
    page = httpx.get(url)
    assert page.status_code == 200 and "/v1/chat/completions" in page.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "case", ["unknown key", "chat marker", "unknown model", "body too large", "failure of ours"]
)
def test_an_error_has_its_status_and_one_sentence(url: str, case: str, stream: bool) -> None:
    request, status, message = BAD_REQUESTS[case]
    reply = post(url, request | {"stream": stream})
    error = reply.json()["error"]
    assert (reply.status_code, error["message"]) == (status, message)
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")


def test_a_body_without_a_declared_length_is_bounded_too(url: str) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 1000

    reply = httpx.post(f"{url}/v1/chat/completions", content=endless())
    assert reply.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/traces/none", 404),
        ("GET", "/v1/chat/completions", 405),
    ],
)
def test_other_errors_have_the_same_shape(url: str, method: str, path: str, status: int) -> None:
    reply = httpx.request(method, url + path, headers={"x-request-id": "mine"})
    assert (reply.status_code, reply.headers["x-request-id"]) == (status, "mine")
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_more_questions_than_allowed_are_turned_away_with_retry_after(url: str) -> None:
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda i: post(url, body(f"slow {i}")), range(12)))
    busy = [reply for reply in replies if reply.status_code == 503]
    served = [reply for reply in replies if reply.status_code == 200]
    assert busy and len(served) >= LIMITS.max_questions and len(busy) + len(served) == 12
    for reply in busy:
        assert reply.headers["retry-after"] == "5"
        assert reply.json()["error"]["message"] == "The server is busy; try again later."


def test_one_question_stays_on_one_generator_replica(url: str, log: Path) -> None:
    def replicas_of(question: str) -> set[str]:
        before = set(log.iterdir())
        for seed in (1, 2):
            assert post(url, body(question, seed=seed)).status_code == 200
        new = {path.name for path in set(log.iterdir()) - before}
        return {name.split("-")[2] for name in new if name.startswith("started-ScriptedGenerator")}

    homes = [replicas_of(f"question {i}") for i in range(10)]
    assert all(len(home) == 1 for home in homes)
    assert len(set.union(*homes)) == 2


async def test_closing_a_stream_of_candidates_stops_the_engine(url: str, log: Path) -> None:
    before = set(log.iterdir())
    handle = ray.serve.get_deployment_handle("generator", "stagebeam")
    prompt = Prompt((Message("user", "linger"),))
    request = GenerateRequest(prompt, "", "</SUMMARY>", (1, 2, 3), Sampling())
    candidates = HandleGenerator(handle, "key", None).propose(request)
    assert isinstance(await anext(candidates), Candidate)
    await candidates.aclose()
    for _ in range(50):
        notes = [path.name for path in set(log.iterdir()) - before]
        if any(name.startswith("cancelled") for name in notes):
            return
        await asyncio.sleep(0.1)
    pytest.fail("the engine goes on for a caller who has left")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_gives_up_stops_its_search(
    client: openai.OpenAI, log: Path, stream: bool
) -> None:
    before = set(log.iterdir())
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(
            model="scripted",
            messages=ask(f"slow hang up {stream}"),
            stream=stream,
            timeout=httpx.Timeout(30, read=0.3),
        )
    time.sleep(2.5)
    notes = [path.name.split("-")[0] for path in set(log.iterdir()) - before]
    assert notes.count("cancelled") == 1
    assert notes.count("started") < 8  # a whole search makes four calls to each engine


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("deployment", ["generator", "judge", "searcher"])
def test_a_replica_killed_in_mid_search_costs_a_retry_and_not_the_answer(
    client: openai.OpenAI, log: Path, deployment: str, stream: bool
) -> None:
    def answer() -> tuple[str, str]:
        reply: Any = client.chat.completions.create(
            model="scripted", messages=ask(f"slow {deployment}"), stream=stream, timeout=90
        )
        if not stream:
            message = reply.choices[0].message
            return message.content, message.reasoning_content
        deltas = [chunk.choices[0].delta for chunk in reply]
        return (
            "".join(delta.content or "" for delta in deltas),
            "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas),
        )

    undisturbed = answer()
    pids = replica_pids(deployment)
    engine = "ScriptedJudge" if deployment == "judge" else "ScriptedGenerator"
    before = set(log.iterdir())
    with ThreadPoolExecutor(1) as pool:
        disturbed = pool.submit(answer)
        while not deciding_later_stage(log, before, engine):
            assert not disturbed.done()
            time.sleep(0.01)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert disturbed.result(90) == undisturbed
    if deployment != "searcher":
        started, finished = calls_in_flight(log, before, engine)
        assert started > finished, "nothing was lost, so nothing was retried"
    wait_for_new(deployment, pids)
