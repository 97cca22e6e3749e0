"""Engines of a fixed cost: they wait for as long as a model of known costs would compute.

So several replicas run at full speed on two cores. The batch is that of the transformers engine:
waiting calls join between passes while their rows fit, oldest first, and finished rows leave.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from stagebeam.capacity.closed_form import round_seconds
from stagebeam.capacity.costs import Costs
from stagebeam.inference.types import (
    Candidate,
    GenerateRequest,
    Judgement,
    JudgeRequest,
    Usage,
    Verdict,
)
from stagebeam.recipe import EngineConfig, JudgeConfig
from stagebeam.stages import STAGES, wrap


@dataclass(slots=True)
class Spent:
    """What a replica did since it was started."""

    questions: int = 0
    passes: int = 0
    pass_s: float = 0.0  # what all of them took
    due_s: float = 0.0  # what they should have taken


@dataclass(slots=True, eq=False)
class _Call:
    lengths: list[int]
    begin_s: float
    ended: asyncio.Queue[int] = field(default_factory=asyncio.Queue)  # places of its rows
    cancelled: bool = False


class FixedCostGenerator:
    """`Generator` whose passes take `pass_s` + rows * `row_s`."""

    fingerprint = "fixed-cost-generator"

    def __init__(self, costs: Costs, log: Path) -> None:
        """`log` is the folder in which each process keeps its own count."""
        self._costs, self._log = costs, log
        self._waiting: deque[_Call] = deque()
        self._rows: list[tuple[_Call, int, int]] = []  # place in the call, tokens left
        self._running: asyncio.Task[None] | None = None
        self._spent = Spent()

    async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
        """Lengths follow from the seeds, uniform as the costs say."""
        (stage,) = (s for s in STAGES if s.close_tag in request.stops)
        question = self._costs.question
        low, high = question.lengths(question.stage_tokens[stage.value])
        lengths = [int(np.random.default_rng(s).integers(low, high + 1)) for s in request.seeds]
        reading = question.prompt_tokens * self._costs.generator.prompt_token_s
        call = _Call(lengths, 0.0 if request.prefix else reading)
        self._spent.questions += not request.prefix
        self._waiting.append(call)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        try:
            for _ in lengths:
                place = await call.ended.get()
                text = wrap(stage, f"{stage.value.lower()} {request.seeds[place]}")
                yield Candidate(place, text, lengths[place], -1.0, "stop")
            yield Usage(decode_tokens=sum(lengths), sequential_passes=max(lengths))
        finally:
            call.cancelled = True

    async def _run(self) -> None:
        while self._waiting or self._rows:
            await self._admit()
            if not self._rows:
                continue
            costs, began = self._costs.generator, time.perf_counter()
            due = costs.pass_s + costs.row_s * len(self._rows)
            await asyncio.sleep(due)
            self._spent.passes += 1
            self._spent.pass_s += time.perf_counter() - began
            self._spent.due_s += due
            rows = [(call, place, left - 1) for call, place, left in self._rows]
            self._rows = [row for row in rows if row[2] and not row[0].cancelled]
            for call, place, left in rows:
                if not left:
                    call.ended.put_nowait(place)
        self._note()

    async def _admit(self) -> None:
        while self._waiting:
            call = self._waiting[0]
            room = self._costs.generator.max_rows - len(self._rows)
            if self._rows and len(call.lengths) > room:
                return
            self._waiting.popleft()
            if call.cancelled:
                continue
            if call.begin_s:
                self._note()
                await asyncio.sleep(call.begin_s)
            self._rows += [(call, place, length) for place, length in enumerate(call.lengths)]

    def _note(self) -> None:
        (self._log / f"{os.getpid()}.json").write_text(json.dumps(asdict(self._spent)))

    async def check(self) -> None:
        """Nothing can break."""

    def close(self) -> None:
        """Nothing is held."""


class FixedCostJudge:
    """`Judge` whose rounds take their time one after another; the later text in the alphabet is the
    better one."""

    fingerprint = "fixed-cost-judge"

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self._turn = asyncio.Lock()

    async def compare(self, request: JudgeRequest) -> Judgement:
        """One verdict a pair."""
        seconds = round_seconds(self._costs, len(request.pairs))
        if not request.prefix:
            seconds += self._costs.question.prompt_tokens * self._costs.judge.prompt_token_s
        async with self._turn:
            await asyncio.sleep(seconds)
        texts = request.candidates
        margins = [1.0 if texts[a] > texts[b] else -1.0 for a, b in request.pairs]
        return Judgement(tuple(Verdict(m, m) for m in margins), Usage(judge_calls=1))

    async def check(self) -> None:
        """Nothing can break."""

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class Loaders:
    """What a replica makes its engine with; `model` of the config is the folder of counts."""

    costs: Costs

    def generator(self, config: EngineConfig) -> FixedCostGenerator:
        return FixedCostGenerator(self.costs, Path(config.model))

    def judge(self, config: JudgeConfig) -> FixedCostJudge:
        return FixedCostJudge(self.costs)
