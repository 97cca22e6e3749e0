"""The candidates of one stage that continue different texts, scored one by one."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stagebeam.inference.types import Candidate, JudgeRequest, Usage
from stagebeam.search.arena import judged
from stagebeam.search.events import CandidatesScored, StageDecided, StageOpened
from stagebeam.search.limits import OutOfBudget
from stagebeam.search.propose import Draw
from stagebeam.search.state import Search, SearchError, Spot, UnfitError, usage_trace
from stagebeam.search.trace import StageName
from stagebeam.stages import Stage


@dataclass(frozen=True, slots=True)
class Route:
    """An answer so far: one candidate of each stage up to here."""

    steps: tuple[Candidate, ...] = ()
    score: float | None = None  # of the last one
    valid: bool = True  # the last one has its tags
    cut: bool = False  # by a limit of the answer

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.steps)

    @property
    def open(self) -> bool:
        """Whether something can follow."""
        return not self.steps or self.steps[-1].finish == "stop"

    @property
    def standing(self) -> tuple[bool, bool, float, float, int]:
        """Whole before broken, scored before unscored, then by score, log-probability, index."""
        last = self.steps[-1]
        score = -math.inf if self.score is None else self.score
        return self.valid, self.open, score, last.mean_logprob, -last.index


@dataclass(slots=True)
class Layer:
    """Every candidate of one stage, over all its retraces; indices count up through them."""

    search: Search
    stage: Stage
    routes: list[Route] = field(default_factory=list)
    unjudged: bool = False  # a judge call failed
    merged_into: dict[int, int] = field(default_factory=dict)
    _visit: int | None = None
    _drawn: int = 0
    _usage: Usage = field(default_factory=Usage)
    _seconds: float = 0.0

    @property
    def name(self) -> StageName:
        return self.stage.value

    def best(self, count: int, among: Iterable[Route] | None = None) -> list[Route]:
        """The first `count` by standing, at least one; only such as can be continued, if any."""
        ranked = sorted(self.routes if among is None else among, key=lambda p: p.standing)[::-1]
        sound = [route for route in ranked if route.valid and route.open]
        return (sound or ranked[:1])[:count]

    async def grow(self, roots: Sequence[Route]) -> list[Route]:
        """N new candidates, spread evenly over the open `roots` (the first ones get more).

        Raises OutOfBudget if a limit left none.
        """
        started, n = time.perf_counter(), self.search.settings.n_of(self.stage.value)
        spot = self.search.spot(self.stage, visit=self._visit)
        if self._visit is None:
            self._visit = spot.visit
            await self.search.emit(StageOpened(spot.visit, spot.name, n))
        roots = roots[:n]
        shares = [n // len(roots) + (i < n % len(roots)) for i in range(len(roots))]
        starts = [self._drawn + sum(shares[:i]) for i in range(len(roots))]
        self._drawn += n
        known = len(self.routes)
        branches = [
            self._branch(replace(spot, prefix=root.text), root, range(start, start + share))
            for root, start, share in zip(roots, starts, shares, strict=True)
        ]
        usages = await _together(branches)
        passes = max(usage.sequential_passes for usage in usages)  # they run side by side
        total = sum(usages, self._usage)
        self._usage = replace(total, sequential_passes=self._usage.sequential_passes + passes)
        self._seconds += time.perf_counter() - started
        if len(self.routes) == known:
            raise OutOfBudget("seconds")
        return self.routes[known:]

    async def decide(self, step: Candidate) -> None:
        usage = usage_trace(self._usage, self._seconds)
        assert self._visit is not None
        decided = StageDecided(self._visit, step.index, usage, self.merged_into)
        await self.search.emit(decided)

    async def _branch(self, spot: Spot, root: Route, indices: range) -> Usage:
        """Draw and score the candidates that continue one root."""
        parent = root.steps[-1].index if root.steps else None
        draw = Draw(self.search, spot, parent=parent)
        try:
            await draw.more(indices, beside=self.search.settings.n_of(self.stage.value))
        except OutOfBudget:
            return draw.usage
        first: dict[str, Candidate] = {}
        for candidate in draw.candidates:
            kept = first.setdefault(candidate.text, candidate)
            if kept is not candidate:
                self.merged_into[candidate.index] = kept.index
        sound = [c for c in first.values() if spot.valid(c)]
        scores, usage = await self._scores(spot, sound)
        for candidate in first.values():
            self.routes.append(
                Route(
                    steps=(*root.steps, candidate),
                    score=scores.get(candidate.index),
                    valid=spot.valid(candidate),
                    cut=candidate.index in draw.cut,
                )
            )
        return draw.usage + usage

    async def _scores(
        self, spot: Spot, sound: Sequence[Candidate]
    ) -> tuple[dict[int, float], Usage]:
        """Score by index; none where the judge failed, which counts each as a failure."""
        if not sound:
            return {}, Usage()
        texts = tuple(c.text for c in sound)
        request = JudgeRequest(self.search.prompt, spot.stage, spot.prefix, texts, ())
        judgement = await judged(self.search, request)
        if judgement is None:
            self.unjudged = True
            lost = Usage(judge_calls=1, judge_failures=len(sound), sequential_passes=1)
            return {}, lost
        if not judgement.scores:
            raise UnfitError(
                "retrace needs a judge that scores each candidate (kind likelihood); this one "
                "only compares them."
            )
        if len(judgement.scores) != len(sound) or not all(map(math.isfinite, judgement.scores)):
            raise SearchError(
                f"The judge gave scores {judgement.scores} for {len(sound)} candidates of "
                f"{spot.name}."
            )
        scores = {c.index: s for c, s in zip(sound, judgement.scores, strict=True)}
        await self.search.emit(CandidatesScored(spot.visit, scores))
        passes = max(1, judgement.usage.sequential_passes)
        return scores, replace(judgement.usage, sequential_passes=passes, judge_calls=1)


async def _together(branches: Iterable[Any]) -> list[Usage]:
    """All at once; the first error ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(branch) for branch in branches]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
