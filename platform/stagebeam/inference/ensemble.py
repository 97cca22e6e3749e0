"""Several judges as one: their margins are added, as independent evidence is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from stagebeam.inference.types import Judge, Judgement, JudgeRequest, Usage, Verdict


class EnsembleJudge:
    """Implements the Judge protocol over `members`, which are asked at the same time.

    Scores add where every member gives them (a product of their distributions); explanations are
    the first member's.
    """

    def __init__(self, members: Sequence[Judge]) -> None:
        assert members, "an ensemble has members"
        self._members = tuple(members)

    async def compare(self, request: JudgeRequest) -> Judgement:
        """A verdict for each pair. Raises what a member raises."""
        said = await asyncio.gather(*(member.compare(request) for member in self._members))
        usage = replace(
            sum((one.usage for one in said), Usage()),
            sequential_passes=max(one.usage.sequential_passes for one in said),
        )
        verdicts = tuple(
            Verdict(sum(v.forward for v in of_pair), sum(v.backward for v in of_pair))
            for of_pair in zip(*(one.verdicts for one in said), strict=True)
        )
        scores: tuple[float, ...] = ()
        if all(one.scores for one in said):
            scores = tuple(map(sum, zip(*(one.scores for one in said), strict=True)))
        return Judgement(verdicts, usage, scores, said[0].explanations)
