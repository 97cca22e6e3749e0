"""Dividing a question over replicas: the rule, and that nothing of the answer depends on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import pytest

from serve.placement import DividedGenerator, DividedJudge, Placement, parts_of, shares
from stagebeam.inference.types import (
    Candidate,
    GenerateRequest,
    Judgement,
    JudgeRequest,
    Prompt,
    Sampling,
    Usage,
    Verdict,
)
from stagebeam.records import Message
from stagebeam.search import SearchSettings, answer
from stagebeam.stages import STAGES, wrap

PROMPT = Prompt((Message("user", "What?"),))


@dataclass
class Part:
    """A replica: texts follow from seeds, verdicts from texts, later seeds are done first."""

    calls: list[GenerateRequest | JudgeRequest] = field(default_factory=list)
    closed: int = 0
    fails: bool = False
    scoring: bool = False  # a judge that also says what each text is worth

    async def propose(self, request: GenerateRequest) -> AsyncGenerator[Candidate | Usage]:
        self.calls.append(request)
        if self.fails:
            raise RuntimeError("broken")
        stages = [stage for stage in STAGES if stage.close_tag in request.stops]
        try:
            for index, seed in reversed(list(enumerate(request.seeds))):
                await asyncio.sleep(0)
                text = " ".join(wrap(s, f"{seed % 11}") for s in stages)
                yield Candidate(index, text, 5, -float(seed % 7), "stop")
            count = len(request.seeds)
            yield Usage(prefill_tokens=10, decode_tokens=5 * count, sequential_passes=5)
        finally:
            self.closed += 1

    async def compare(self, request: JudgeRequest) -> Judgement:
        self.calls.append(request)
        texts = request.candidates
        margins = [float(hash_of(texts[a]) - hash_of(texts[b])) for a, b in request.pairs]
        verdicts = tuple(Verdict(margin, margin) for margin in margins)
        scores = tuple(float(hash_of(text)) for text in texts) if self.scoring else ()
        usage = Usage(judge_tokens=3, judge_calls=1, sequential_passes=1)
        return Judgement(verdicts, usage, scores)


def hash_of(text: str) -> int:
    return sum(map(ord, text)) % 13


@pytest.mark.parametrize(
    ("placement", "items", "replicas", "questions", "parts"),
    [
        ("pack", 8, 4, 1, 1),
        ("spread", 8, 4, 100, 4),
        ("spread", 2, 4, 1, 2),
        ("spread", 4, 0, 1, 1),  # nobody has been heard of yet
        ("auto", 8, 4, 1, 4),
        ("auto", 4, 4, 1, 2),  # at least two each
        ("auto", 8, 4, 2, 2),
        ("auto", 8, 4, 3, 1),  # none would idle for the fourth question
        ("auto", 1, 4, 1, 1),
        ("auto", 8, 1, 1, 1),
    ],
)
def test_the_rule(
    placement: Placement, items: int, replicas: int, questions: int, parts: int
) -> None:
    assert parts_of(placement, items, replicas, questions) == parts


def test_shares_are_neighbours_and_as_even_as_can_be() -> None:
    assert [list(share) for share in shares(range(7), 3)] == [[0, 1, 2], [3, 4], [5, 6]]


@pytest.mark.parametrize("method", ["stage_beam", "best_of_n", "majority"])
@pytest.mark.parametrize("n", [2, 5, 8])
@pytest.mark.parametrize("scoring", [False, True])
async def test_a_divided_search_decides_what_a_packed_one_does(
    method: str, n: int, scoring: bool
) -> None:
    async def decisions(parts: int) -> tuple[object, ...]:
        replicas = [Part(scoring=scoring) for _ in range(parts)]
        of = min(parts, n)
        trace = await answer(
            PROMPT,
            DividedGenerator(lambda part, _: replicas[part], lambda items: min(items, of)),
            DividedJudge(lambda part, _: replicas[part], lambda items: min(items, of)),
            SearchSettings(method=method, candidates=n, seed=3),  # type: ignore[arg-type]
            generator_id="g",
            judge_id="j",
        )
        assert all(replica.calls for replica in replicas[:of])
        assert not trace.usage.judge_failures
        stages = [(s.candidates, s.matches, s.winner) for s in trace.stages]
        return trace.id, trace.text, stages, trace.usage.decode_tokens, trace.usage.judge_calls

    assert await decisions(1) == await decisions(2) == await decisions(3)


async def test_parts_cost_the_sum_of_their_work_and_the_longest_of_their_waits() -> None:
    request = GenerateRequest(PROMPT, "", ("</SUMMARY>",), (1, 2, 3), Sampling())
    replicas = [Part(), Part()]
    divided = DividedGenerator(lambda part, of: replicas[part], lambda items: 2)
    *_, usage = [item async for item in divided.propose(request)]
    assert usage == Usage(prefill_tokens=20, decode_tokens=15, sequential_passes=5)


async def test_closing_closes_every_part() -> None:
    request = GenerateRequest(PROMPT, "", ("</SUMMARY>",), (1, 2, 3, 4), Sampling())
    replicas = [Part(), Part()]
    stream = DividedGenerator(lambda part, of: replicas[part], lambda items: 2).propose(request)
    await anext(stream)
    await stream.aclose()
    await asyncio.sleep(0)
    assert [replica.closed for replica in replicas] == [1, 1]


async def test_a_part_that_fails_fails_the_call() -> None:
    request = GenerateRequest(PROMPT, "", ("</SUMMARY>",), (1, 2, 3, 4), Sampling())
    replicas = [Part(), Part(fails=True)]
    divided = DividedGenerator(lambda part, of: replicas[part], lambda items: 2)
    with pytest.raises(RuntimeError, match="broken"):
        [item async for item in divided.propose(request)]
