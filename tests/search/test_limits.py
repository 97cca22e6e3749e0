"""Limits of an answer: there is always an answer, as good as what was left allowed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from stagebeam.inference.types import Candidate, GenerateRequest, Judgement, JudgeRequest, Usage
from stagebeam.search import Trace, answer, events
from stagebeam.search.events import LimitReached, StageDecided
from stagebeam.search.limits import Allowance, OutOfBudget, Share
from stagebeam.search.stage_beam import stage_beam
from stagebeam.stages import STAGES, wrap


def whole(words: int) -> str:
    """A staged answer with so many words in each stage, tags counted."""
    return " ".join(wrap(s, " ".join(["word"] * (words - 2))) for s in STAGES)


@dataclass
class Writing:
    """Writes on with `whole(words)` where the prefix ends, a token a word, until a stop, the
    length limit, or the time limit (`pace` seconds a token, by the clock `now`)."""

    words: int
    pace: float = 0.0
    now: float = 0.0
    requests: list[GenerateRequest] = field(default_factory=list)

    async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
        self.requests.append(request)
        rest = whole(self.words)[len(request.prefix) :]
        text, tokens, finish = "", 0, "end"
        for word in rest.split():
            if tokens >= request.sampling.max_new_tokens or self._late(request, tokens):
                finish = "length"
                break
            text = rest[: rest.index(word, len(text)) + len(word)]
            tokens += 1
            if any(stop in text for stop in request.stops):
                finish = "stop"
                break
        self.now += self.pace * tokens
        for index in range(len(request.seeds)):
            yield Candidate(index, text, tokens, -1.0, finish)  # type: ignore[arg-type]
        yield Usage(decode_tokens=tokens * len(request.seeds), sequential_passes=tokens)

    def _late(self, request: GenerateRequest, tokens: int) -> bool:
        return request.seconds is not None and self.pace * (tokens + 1) > request.seconds


async def ask(kit: SimpleNamespace, generator: Any, judge: Any = None, **changed: Any) -> Trace:
    judge = judge or kit.ScriptedJudge(lambda text: 0.0)
    return await answer(
        kit.ask(), generator, judge, kit.settings(**changed), generator_id="g1", judge_id="j1"
    )


METHODS = ("majority", "best_of_n", "sentence_beam", "stage_beam")


@pytest.mark.parametrize("method", METHODS)
async def test_without_need_of_it_a_limit_changes_nothing(
    kit: SimpleNamespace, method: str
) -> None:
    limits = {"max_answer_tokens": 10_000, "max_seconds": 1000.0}
    free = await ask(kit, Writing(6), method=method)
    bound = await ask(kit, Writing(6), method=method, **limits)
    assert (bound.text, bound.limited) == (free.text, None)
    assert [s.stage for s in bound.stages] == [s.stage for s in free.stages]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("limit", [40, 60, 100, 150, 200])
async def test_tokens_over_all_candidates_stay_within_the_limit_and_an_answer_comes(
    kit: SimpleNamespace, method: str, limit: int
) -> None:
    """The answer has 24 tokens; four of them at once would have 96."""
    generator = Writing(6)
    trace = await ask(kit, generator, method=method, candidates=4, max_answer_tokens=limit)
    assert sum(c.tokens for s in trace.stages for c in s.candidates) <= limit
    assert trace.usage.decode_tokens <= limit
    assert whole(6).startswith(trace.text) and trace.text
    assert (trace.limited == "tokens") == any(s.stage == "REST" for s in trace.stages)
    if limit >= 100:
        assert trace.problems == () and trace.text == whole(6)


async def test_what_is_left_undone_is_finished_greedily_in_one_call(kit: SimpleNamespace) -> None:
    generator = Writing(6)
    trace = await ask(kit, generator, candidates=4, max_answer_tokens=60)
    # 45 to search with: 24 for the summary, then 5 each for the caption, which is cut there.
    assert [s.stage for s in trace.stages] == ["SUMMARY", "CAPTION", "REST"]
    assert [r.sampling.max_new_tokens for r in generator.requests] == [11, 5, 16]
    assert (len(generator.requests[-1].seeds), generator.requests[-1].sampling.temperature) == (
        1,
        0,
    )
    assert trace.text == whole(6)[: len(trace.text)]
    assert (trace.limited, trace.max_answer_tokens) == ("tokens", 60)


async def test_a_limit_is_told_once_when_it_first_bites(kit: SimpleNamespace) -> None:
    judge = kit.ScriptedJudge(lambda text: 0.0)
    wanted = kit.settings(candidates=4, max_answer_tokens=60)
    told = [
        event
        async for event in events(
            kit.ask(), Writing(6), judge, wanted, generator_id="g1", judge_id="j1"
        )
    ]
    limits = [i for i, event in enumerate(told) if event == LimitReached("tokens")]
    decided = [i for i, event in enumerate(told) if isinstance(event, StageDecided)]
    assert len(limits) == 1 and decided[0] < limits[0] < decided[1]


async def test_the_same_token_limit_gives_the_same_trace(kit: SimpleNamespace) -> None:
    one, two = [await ask(kit, Writing(6), max_answer_tokens=70) for _ in range(2)]
    assert one.model_dump(exclude={"usage", "stages"}) == two.model_dump(
        exclude={"usage", "stages"}
    )
    assert [s.candidates for s in one.stages] == [s.candidates for s in two.stages]


async def test_a_stage_cut_at_its_own_length_ends_the_answer_as_ever(
    kit: SimpleNamespace,
) -> None:
    trace = await ask(kit, Writing(9), candidates=2, max_new_tokens=5, max_answer_tokens=1000)
    assert [s.stage for s in trace.stages] == ["SUMMARY"]
    assert (trace.limited, trace.conclusion) == (None, None)


@pytest.mark.parametrize("method", (*METHODS, "greedy"))
async def test_too_few_tokens_for_an_answer_give_its_beginning_and_say_so(
    kit: SimpleNamespace, method: str
) -> None:
    trace = await ask(kit, Writing(6), method=method, candidates=2, max_answer_tokens=9)
    assert whole(6).startswith(trace.text)
    assert (trace.limited, trace.conclusion) == ("tokens", None)
    assert "CONCLUSION missing" in trace.problems


async def test_seconds_cut_the_candidates_and_leave_time_to_finish(kit: SimpleNamespace) -> None:
    """A second a token, by a clock of its own: 120 seconds without a limit."""
    wanted = kit.settings(candidates=2, max_seconds=100.0)
    generator = Writing(30, pace=1.0)
    search, told = kit.search(generator, kit.ScriptedJudge(lambda text: 0.0), wanted)
    search.allowance = Allowance(wanted, lambda: generator.now)
    await stage_beam(search)
    assert [s.stage for s in told.stages] == ["SUMMARY", "CAPTION", "REASONING", "REST"]
    assert [r.seconds for r in generator.requests] == [75.0, 45.0, 15.0, 22.5]
    assert [s.candidates[0].tokens for s in told.stages] == [30, 30, 15, 22]
    assert told.limited == "seconds" and whole(30).startswith(told.text)


@pytest.mark.parametrize("method", METHODS)
async def test_an_engine_that_does_not_heed_the_time_is_left_at_the_end_of_it(
    kit: SimpleNamespace, method: str
) -> None:
    generator = kit.HangingGenerator()
    trace = await asyncio.wait_for(
        ask(kit, generator, method=method, candidates=2, max_seconds=0.1), 5
    )
    assert (trace.stages, trace.text, trace.limited) == ((), "", "seconds")
    assert "SUMMARY missing" in trace.problems
    assert generator.stopped


async def test_candidates_that_had_come_by_then_are_used(kit: SimpleNamespace) -> None:
    class HalfStuck:
        async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
            yield Candidate(1, "<SUMMARY> a </SUMMARY>", 3, -1.0, "stop")
            await asyncio.Event().wait()

    trace = await ask(kit, HalfStuck(), candidates=3, max_seconds=0.5)
    (stage,) = trace.stages
    assert (trace.text, stage.winner, stage.planned) == ("<SUMMARY> a </SUMMARY>", 1, 3)
    assert stage.usage.decode_tokens == 9  # the two under way had about as many


async def test_a_judge_that_takes_too_long_counts_as_one_that_failed(
    kit: SimpleNamespace,
) -> None:
    class Slow:
        async def compare(self, request: JudgeRequest) -> Judgement:
            await asyncio.Event().wait()
            raise AssertionError

    generator = kit.SeededGenerator()
    trace = await asyncio.wait_for(ask(kit, generator, Slow(), max_seconds=0.5), 5)
    assert trace.limited == "seconds"
    assert trace.stages[0].usage.judge_failures == 6 and trace.text


@pytest.mark.parametrize("form", ["chain", "arrival", "bracket"])
async def test_limits_hold_in_every_form(kit: SimpleNamespace, form: str) -> None:
    wanted: dict[str, Any] = {"tournament": form, "candidates": 4, "max_answer_tokens": 60}
    trace = await ask(kit, Writing(6), **wanted)
    assert trace.usage.decode_tokens <= 60 and whole(6).startswith(trace.text)


async def test_a_limit_that_leaves_only_the_first_two_of_an_adaptive_stage(
    kit: SimpleNamespace,
) -> None:
    generator = kit.SeededGenerator()
    judge = kit.ScriptedJudge(lambda text: 0.0)
    wanted = {"budget": "adaptive", "early_stop_margin": 1.0, "max_answer_tokens": 12}
    trace = await ask(kit, generator, judge, candidates=8, **wanted)
    assert len(trace.stages[0].candidates) == 2 and trace.limited == "tokens"


def allowance(clock: Callable[[], float], kit: SimpleNamespace, **changed: Any) -> Allowance:
    return Allowance(kit.settings(**changed), clock)


def test_a_quarter_is_kept_back_while_several_compete(kit: SimpleNamespace) -> None:
    now = 0.0
    left = allowance(lambda: now, kit, max_answer_tokens=100, max_seconds=10.0)
    assert left.share(4, 50) == Share(18, 7.5)
    assert left.share(1, 50) == Share(50, 9.0)
    left.spend(70)
    now = 7.0
    assert left.share(2, 50) == Share(2, 0.5)
    now = 8.0
    with pytest.raises(OutOfBudget, match="seconds"):
        left.share(2, 50)
    assert left.share(1, 50) == Share(30, pytest.approx(1.8))
    left.spend(30)
    with pytest.raises(OutOfBudget, match="tokens"):
        left.share(1, 50)
    now = 11.0
    assert left.left() == 0


def test_what_cut_a_candidate_is_told_apart_from_its_own_length(kit: SimpleNamespace) -> None:
    def cut(tokens: int, finish: str, **limits: Any) -> str | None:
        left = allowance(lambda: 0.0, kit, **limits)
        candidate = Candidate(0, "", tokens, 0.0, finish)  # type: ignore[arg-type]
        return left.cut(candidate, Share(10, 1.0), 20)

    assert cut(10, "length", max_answer_tokens=40) == "tokens"
    assert cut(7, "length", max_answer_tokens=40) is None  # the model's own end of context
    assert cut(7, "length", max_seconds=1.0) == "seconds"
    assert cut(20, "length", max_seconds=1.0, max_answer_tokens=40) is None
    assert cut(10, "stop", max_answer_tokens=40) is None
