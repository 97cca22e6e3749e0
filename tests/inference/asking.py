"""How the tests ask an engine: a drawn example as a request, and all that it answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from stagebeam.inference.reading import Begun
from stagebeam.inference.transformers_engine import TransformersEngine
from stagebeam.inference.types import Candidate, GenerateRequest, Prompt, Sampling, Usage
from stagebeam.records import Example

MakeEngine = Callable[..., TransformersEngine]

NEVER = "<never>"  # a stop that no model here can write
PATIENCE = 60.0  # seconds; a call that takes longer hangs


def prompt_of(example: Example) -> Prompt:
    """Its first question."""
    return Prompt(example.messages[:1], tuple(image.bytes for image in example.images))


def request(
    example: Example,
    *,
    prefix: str = "",
    stop: str = NEVER,
    seeds: tuple[int, ...] = (0,),
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_new_tokens: int = 24,
) -> GenerateRequest:
    sampling = Sampling(temperature, top_p, max_new_tokens)
    return GenerateRequest(prompt_of(example), prefix, (stop,), seeds, sampling)


async def arrivals(
    engine: TransformersEngine, asked: GenerateRequest
) -> tuple[list[Candidate], Usage]:
    """Candidates in the order in which they came, and the usage, which came last."""
    items = []
    async with asyncio.timeout(PATIENCE):
        async for item in engine.propose(asked):
            items.append(item)
    *candidates, usage = items
    assert isinstance(usage, Usage)
    found = [item for item in candidates if isinstance(item, Candidate)]
    assert sorted(c.index for c in found) == list(range(len(asked.seeds)))
    return found, usage


async def answers(
    engine: TransformersEngine, asked: GenerateRequest
) -> tuple[list[Candidate], Usage]:
    """The same, with the candidates in the order of their seeds."""
    found, usage = await arrivals(engine, asked)
    return sorted(found, key=lambda c: c.index), usage


def rows_of_each_pass(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the number of rows of every decoding pass."""
    seen: list[int] = []
    step = engine._batch.step

    def spy() -> None:
        seen.append(len(engine._batch.rows))
        step()

    monkeypatch.setattr(engine._batch, "step", spy)
    return seen


def hold_until_all_came(
    engine: TransformersEngine, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first reading waits for the other calls, so that their rows decode together."""
    begin = engine._reader.begin

    def after_all_came(*call: Any) -> Begun:
        deadline = time.monotonic() + PATIENCE
        while came(engine) < calls - 1 and time.monotonic() < deadline:
            time.sleep(0.001)
        monkeypatch.setattr(engine._reader, "begin", begin)
        return begin(*call)

    monkeypatch.setattr(engine._reader, "begin", after_all_came)


def came(engine: TransformersEngine) -> int:
    """Calls that wait."""
    return engine._inbox.qsize() + len(engine._waiting)


async def together(
    engine: TransformersEngine, requests: list[GenerateRequest], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[list[Candidate], Usage]]:
    """`answers` to all of them, none of which starts before all have come."""
    hold_until_all_came(engine, len(requests), monkeypatch)
    return await asyncio.gather(*(answers(engine, asked) for asked in requests))
