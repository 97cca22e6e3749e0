"""Several judges as one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from stagebeam.inference.ensemble import EnsembleJudge
from stagebeam.inference.types import Judgement, JudgeRequest, Prompt, Usage, Verdict
from stagebeam.records import Message

REQUEST = JudgeRequest(Prompt((Message("user", "Q"),)), None, "", ("a", "b", "c"), ((0, 1), (2, 1)))


@dataclass
class Member:
    """Says what it is told to, once all `others` have been asked too."""

    said: Judgement
    together: asyncio.Barrier | None = None

    async def compare(self, request: JudgeRequest) -> Judgement:
        assert request == REQUEST
        if self.together is not None:
            await self.together.wait()
        return self.said


def said(*margins: float, scores: tuple[float, ...] = (), passes: int = 1) -> Judgement:
    verdicts = tuple(Verdict(margin + 1, margin - 1) for margin in margins)
    return Judgement(verdicts, Usage(judge_tokens=10, sequential_passes=passes), scores)


async def test_margins_and_scores_add_order_by_order() -> None:
    first = said(1.0, -2.0, scores=(3.0, 2.0, 0.0))
    second = said(0.5, 5.0, scores=(0.0, -0.5, 4.5))
    found = await EnsembleJudge([Member(first), Member(second)]).compare(REQUEST)
    assert found.verdicts == (Verdict(3.5, -0.5), Verdict(5.0, 1.0))
    assert found.scores == (3.0, 1.5, 4.5)


async def test_members_are_asked_at_the_same_time_and_the_slowest_counts() -> None:
    together = asyncio.Barrier(2)
    members = [Member(said(0, 0, passes=n), together) for n in (2, 7)]
    found = await asyncio.wait_for(EnsembleJudge(members).compare(REQUEST), 5)
    assert found.usage == Usage(judge_tokens=20, sequential_passes=7)


async def test_without_the_scores_of_one_there_are_none() -> None:
    found = await EnsembleJudge([Member(said(1, 1, scores=(1, 2, 3))), Member(said(1, 1))]).compare(
        REQUEST
    )
    assert found.scores == ()


async def test_what_a_member_raises_is_raised() -> None:
    class Broken:
        async def compare(self, request: JudgeRequest) -> Judgement:
            raise RuntimeError("no judge")

    with pytest.raises(RuntimeError, match="no judge"):
        await EnsembleJudge([Member(said(0, 0)), Broken()]).compare(REQUEST)
