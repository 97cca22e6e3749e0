"""One stream of events: in order, as it happens, and all that a trace is made of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stagebeam.inference.types import Candidate, GenerateRequest, Usage
from stagebeam.search import answer, events
from stagebeam.search.events import (
    Answered,
    CandidateFinished,
    CandidatesScored,
    Event,
    MatchDecided,
    StageDecided,
    StageOpened,
)
from stagebeam.search.fold import Fold

ALL = ("greedy", "majority", "best_of_n", "sentence_beam", "stage_beam", "retrace")
IDS = {"generator_id": "g1", "judge_id": "j1"}


def wanted_for(kit: SimpleNamespace, method: str, folder: Path, **changed: Any) -> Any:
    path = kit.calibration(folder, CAPTION=1e30) if method == "retrace" else None
    return kit.settings(method=method, calibration=path, **changed)


async def listen(kit: SimpleNamespace, generator: Any, judge: Any, wanted: Any) -> list[Event]:
    return [e async for e in events(kit.ask(), generator, judge, wanted, **IDS)]


@pytest.mark.parametrize("method", ALL)
async def test_a_trace_is_what_its_events_come_to(
    kit: SimpleNamespace, tmp_path: Path, method: str
) -> None:
    judge = kit.ScriptedJudge(kit.by_number, pointwise=True)
    told = await listen(kit, kit.SeededGenerator(), judge, wanted_for(kit, method, tmp_path))
    fold = Fold()
    for event in told:
        fold.add(event)
    last = told[-1]
    assert isinstance(last, Answered) and sum(isinstance(e, Answered) for e in told) == 1
    trace = last.trace
    assert (trace.stages, trace.retraces) == (tuple(fold.stages), tuple(fold.retraces))
    assert (trace.text, trace.limited) == (fold.text, fold.limited)
    assert bool(trace.retraces) == (method == "retrace")


@pytest.mark.parametrize("method", ALL)
async def test_the_same_seed_gives_the_same_trace_seconds_apart(
    kit: SimpleNamespace, tmp_path: Path, method: str
) -> None:
    async def once() -> dict[str, Any]:
        judge = kit.ScriptedJudge(kit.by_number, pointwise=True)
        wanted = wanted_for(kit, method, tmp_path)
        trace = await answer(kit.ask(), kit.SeededGenerator(), judge, wanted, **IDS)
        dumped = trace.model_dump()
        for usage in (dumped["usage"], *(s["usage"] for s in dumped["stages"])):
            del usage["seconds"]
        return dumped

    assert await once() == await once()


@pytest.mark.parametrize("form", ["chain", "bracket", "round_robin", "finals", "arrival"])
async def test_all_about_a_stage_is_told_between_its_opening_and_its_decision(
    kit: SimpleNamespace, form: str
) -> None:
    judge = kit.ScriptedJudge(kit.by_number, pointwise=True)
    wanted = kit.settings(candidates=3, tournament=form)
    told = await listen(kit, kit.SeededGenerator(), judge, wanted)
    assert [type(e) for e in told[-1:]] == [Answered]
    rest = iter(told[:-1])
    for visit, stage in enumerate(("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")):
        assert next(rest) == StageOpened(visit, stage, 3)  # type: ignore[arg-type]
        kinds = []
        while not isinstance(event := next(rest), StageDecided):
            assert event.visit == visit  # type: ignore[union-attr]
            kinds.append(type(event))
        matches = kinds.count(MatchDecided)
        assert kinds == [CandidateFinished] * 3 + [MatchDecided] * matches + [CandidatesScored]
        assert event.visit == visit and matches >= 2


async def test_candidates_are_told_as_the_generator_gives_them(kit: SimpleNamespace) -> None:
    go_on = asyncio.Event()

    class Slow:
        async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
            yield Candidate(1, "<SUMMARY> late </SUMMARY>", 3, -1.0, "end")
            await go_on.wait()
            yield Candidate(0, "<SUMMARY> later </SUMMARY>", 3, -1.0, "end")
            yield Usage()

    judge = kit.ScriptedJudge(len)
    stream = events(kit.ask(), Slow(), judge, kit.settings(candidates=2), **IDS)
    async with aclosing(stream):
        assert isinstance(await anext(stream), StageOpened)
        first = await asyncio.wait_for(anext(stream), 1)
        assert isinstance(first, CandidateFinished)
        assert (first.candidate.index, first.candidate.valid) == (1, True)
        go_on.set()
        *_, last = [event async for event in stream]
    assert isinstance(last, Answered)
    assert [c.index for c in last.trace.stages[0].candidates] == [0, 1]


async def test_the_search_goes_on_when_the_next_event_is_asked_for(kit: SimpleNamespace) -> None:
    generator = kit.SeededGenerator()
    stream = events(kit.ask(), generator, None, kit.settings(candidates=1), **IDS)
    async with aclosing(stream):
        async for event in stream:
            if isinstance(event, StageDecided):
                for _ in range(10):
                    await asyncio.sleep(0)
                assert len(generator.requests) == event.visit + 1


@pytest.mark.parametrize("method", ALL)
async def test_closing_the_stream_closes_the_generators_iterator(
    kit: SimpleNamespace, tmp_path: Path, method: str
) -> None:
    generator = kit.HangingGenerator()
    judge = kit.ScriptedJudge(kit.by_number, pointwise=True)
    stream = events(kit.ask(), generator, judge, wanted_for(kit, method, tmp_path), **IDS)
    assert isinstance(await anext(stream), StageOpened)
    waiting = asyncio.ensure_future(anext(stream))
    await generator.started.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await stream.aclose()
    assert generator.stopped


async def test_a_stream_that_is_left_in_mid_candidates_closes_the_iterator(
    kit: SimpleNamespace,
) -> None:
    closed = []

    class Remembering:
        async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
            try:
                for index in range(2):
                    yield Candidate(index, "<SUMMARY> a </SUMMARY>", 3, -1.0, "stop")
            finally:
                closed.append(True)

    stream = events(kit.ask(), Remembering(), None, kit.settings(candidates=1), **IDS)
    async with aclosing(stream):
        async for event in stream:
            if isinstance(event, CandidateFinished):
                break
    assert closed == [True]


async def test_explanations_are_kept_with_their_matches_where_they_were_asked_for(
    kit: SimpleNamespace,
) -> None:
    for explain, said in ((True, "0 against 1"), (False, None)):
        judge = kit.ScriptedJudge(kit.by_number)
        wanted = kit.settings(candidates=2, explain=explain)
        trace = await answer(kit.ask(), kit.SeededGenerator(), judge, wanted, **IDS)
        assert all(request.explain is explain for request in judge.requests)
        assert [s.matches[0].explanation for s in trace.stages] == [said] * 4


async def test_a_pointwise_judges_scores_are_kept_with_the_candidates(
    kit: SimpleNamespace,
) -> None:
    judge = kit.ScriptedJudge(kit.by_number, pointwise=True)
    wanted = kit.settings(candidates=3, tournament="bracket")
    trace = await answer(kit.ask(), kit.SeededGenerator(), judge, wanted, **IDS)
    for stage in trace.stages:
        assert [c.score for c in stage.candidates] == [
            kit.by_number(c.text) for c in stage.candidates
        ]
