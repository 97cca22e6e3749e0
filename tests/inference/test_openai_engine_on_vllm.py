"""The engine for OpenAI-compatible servers against vLLM's own, on a CPU (`make vllm-env`)."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from asking import NEVER, answers
from chat_world import engine_config, judge_config
from greedy import export, greedy
from vllm_env import MARKS, SECONDS, running

from stagebeam.inference.chat_server import ChatServer
from stagebeam.inference.load import load_judge
from stagebeam.inference.openai_engine import OpenAIEngine
from stagebeam.inference.types import GenerateRequest, JudgeRequest, Prompt, Sampling
from stagebeam.models.load import Loaded
from stagebeam.records import Example, Message

PROGRAM = Path(__file__).with_name("vllm_server.py")
TOKENS = 16

pytestmark = MARKS


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, scenes: list[Example]) -> Loaded:
    return export(tmp_path_factory.mktemp("served") / "export", "llava", scenes)


@pytest.fixture(scope="module")
def url(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    with running([PROGRAM, loaded.encoder.path, port], log) as process:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.5)
        else:
            pytest.fail(log.read_text()[-5000:])
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture
def engine(url: str) -> OpenAIEngine:
    return OpenAIEngine(ChatServer(engine_config(url)))


@pytest.fixture
def drawn(scenes: list[Example], tmp_path: Path) -> tuple[str, Path]:
    """A question, and its picture in a file."""
    example = next(e for e in scenes if e.images)
    picture = tmp_path / "picture.png"
    picture.write_bytes(example.images[0].bytes)
    return example.messages[0].text, picture


def request(
    drawn: tuple[str, Path],
    *,
    prefix: str = "",
    stops: tuple[str, ...] = (NEVER,),
    seeds: tuple[int, ...] = (0,),
    temperature: float = 0.0,
    tokens: int = TOKENS,
) -> GenerateRequest:
    question, picture = drawn
    prompt = Prompt((Message("user", question),), (picture.read_bytes(),))
    return GenerateRequest(prompt, prefix, stops, seeds, Sampling(temperature, 1.0, tokens))


async def test_greedy_is_that_of_transformers(
    engine: OpenAIEngine, loaded: Loaded, drawn: tuple[str, Path]
) -> None:
    text, tokens, logprob = greedy(loaded, *drawn, TOKENS)
    ((found,), usage) = await answers(engine, request(drawn))
    assert (found.text.strip(), found.tokens) == (text.strip(), tokens)
    assert found.logprob == pytest.approx(logprob, abs=1e-2)
    assert usage.decode_tokens == tokens and usage.prefill_tokens > 0


async def test_a_prefix_is_continued_and_a_stop_is_kept(
    engine: OpenAIEngine, loaded: Loaded, drawn: tuple[str, Path]
) -> None:
    first = greedy(loaded, *drawn, TOKENS)[0].split()
    prefix = " ".join(first[:3])
    text = greedy(loaded, *drawn, TOKENS, prefix)[0]
    ((found,), _) = await answers(engine, request(drawn, prefix=prefix))
    assert found.text.strip() == text.strip()
    stop = text.split()[1]
    ((stopped,), _) = await answers(engine, request(drawn, prefix=prefix, stops=(stop,)))
    assert stopped.finish == "stop" and stopped.text.endswith(stop)
    assert found.text.startswith(stopped.text)


async def test_seeds_decide_the_candidates(engine: OpenAIEngine, drawn: tuple[str, Path]) -> None:
    asked = request(drawn, seeds=(1, 2, 3), temperature=1.0)
    once, again = [[c.text for c in (await answers(engine, asked))[0]] for _ in range(2)]
    assert once == again and len(set(once)) == 3


async def test_who_leaves_ends_the_work_of_the_server(
    url: str, engine: OpenAIEngine, drawn: tuple[str, Path]
) -> None:
    asked = request(drawn, seeds=(7,), temperature=1.0, tokens=900)
    for _ in range(2):  # the first one warms up
        before, started = await _tokens_made(url), time.perf_counter()
        await answers(engine, asked)
        seconds = time.perf_counter() - started
        whole = await _tokens_made(url) - before
    made = []
    for share in (0.02, 0.05, 0.1, 0.2, 0.3):  # the server is far ahead of what has been read
        before = await _tokens_made(url)
        call = asyncio.create_task(answers(engine, asked))
        await asyncio.sleep(share * seconds)
        call.cancel()
        made.append(await _tokens_made(url) - before)
    assert any(0 < tokens < whole for tokens in made), "the same seed comes to as many tokens again"


async def _tokens_made(url: str) -> float:
    """By the server since it started; waits until it makes no more."""
    made = -1.0
    async with asyncio.timeout(120), httpx.AsyncClient(timeout=60) as client:
        while True:
            metrics = (await client.get(url.replace("/v1", "/metrics"))).text
            lines = [line for line in metrics.splitlines() if "generation_tokens_total{" in line]
            before, made = made, sum(float(line.split()[-1]) for line in lines)
            if made == before:
                return made
            await asyncio.sleep(2)


async def test_a_remote_judge_reads_the_log_probabilities(
    url: str, drawn: tuple[str, Path]
) -> None:
    judge = load_judge(judge_config(url, "remote"))
    asked = JudgeRequest(request(drawn).prompt, None, "", ("red", "blue"), ((0, 1), (1, 0)))
    judgement = await judge.compare(asked)
    straight, swapped = judgement.verdicts
    assert straight.margin == pytest.approx(-swapped.margin, abs=1e-3)
    assert judgement.usage.judge_tokens > 0
