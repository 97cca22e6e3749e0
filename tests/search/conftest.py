"""Scripted generators and judges: every search runs in milliseconds and is wholly known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stagebeam.inference.types import (
    Candidate,
    FinishReason,
    GenerateRequest,
    Judgement,
    JudgeRequest,
    Prompt,
    Usage,
    Verdict,
)
from stagebeam.records import Message
from stagebeam.search.calibration import Calibration, StageScores, write_calibration
from stagebeam.search.events import Event
from stagebeam.search.fold import Fold
from stagebeam.search.settings import SearchSettings
from stagebeam.search.state import Search
from stagebeam.search.trace import StageTrace
from stagebeam.stages import STAGES, Stage, render, wrap


@dataclass(frozen=True)
class Say:
    """One candidate to be. Tokens are words; `logprob` is the mean over them."""

    text: str
    logprob: float = -1.0
    finish: FinishReason = "stop"

    def candidate(self, index: int) -> Candidate:
        tokens = len(self.text.split())
        return Candidate(index, self.text, tokens, self.logprob * tokens, self.finish)


@dataclass
class ScriptedGenerator:
    """Says the script's lines for a stop tag, last index first; keeps every request."""

    script: Mapping[str, Sequence[Say]]
    requests: list[GenerateRequest] = field(default_factory=list)

    async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
        self.requests.append(request)
        lines = self.script[request.stops[0]]
        said = [lines[index].candidate(index) for index in range(len(request.seeds))]
        for candidate in reversed(said):
            yield candidate
        yield Usage(
            decode_tokens=sum(c.tokens for c in said),
            sequential_passes=max(c.tokens for c in said),
        )


@dataclass
class SeededGenerator:
    """Stages whose words follow from the seed alone."""

    requests: list[GenerateRequest] = field(default_factory=list)

    async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
        self.requests.append(request)
        for index, seed in enumerate(request.seeds):
            text = self._text(request, seed)
            yield Candidate(index, text, 3, -float(seed % 7), "stop")
        yield Usage(decode_tokens=3 * len(request.seeds), sequential_passes=3)

    def _text(self, request: GenerateRequest, seed: int) -> str:
        missing = [s for s in STAGES if s.close_tag not in request.prefix]
        if request.stops == (Stage.CONCLUSION.close_tag,) and len(missing) > 1:
            return " ".join(wrap(s, f"{seed % 5}") for s in missing)
        return wrap(next(s for s in missing if s.close_tag in request.stops), f"{seed}")


@dataclass
class HangingGenerator:
    """Never answers; remembers that it was stopped."""

    started: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: bool = False

    async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
        try:
            self.started.set()
            await asyncio.Event().wait()
            yield Usage()
        finally:
            self.stopped = True


@dataclass
class ScriptedJudge:
    """Prefers the text with the higher score, with a constant bias for what it reads first; a
    pointwise one also tells the scores."""

    score: Callable[[str], float]
    bias: float = 0.0
    pointwise: bool = False
    usage: Usage = field(default_factory=lambda: Usage(judge_tokens=10))
    requests: list[JudgeRequest] = field(default_factory=list)

    async def compare(self, request: JudgeRequest) -> Judgement:
        self.requests.append(request)
        texts = request.candidates
        margins = [self.score(texts[a]) - self.score(texts[b]) for a, b in request.pairs]
        verdicts = tuple(Verdict(m + self.bias, m - self.bias) for m in margins)
        scores = tuple(map(self.score, texts)) if self.pointwise else ()
        said = tuple(f"{a} against {b}" for a, b in request.pairs) if request.explain else ()
        return Judgement(verdicts, self.usage, scores, said)


class FailingJudge:
    async def compare(self, request: JudgeRequest) -> Judgement:
        raise ConnectionError("the judge is gone")


class Told(Fold):
    """Keeps the events beside what they come to."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    async def hear(self, event: Event) -> None:
        self.events.append(event)
        self.add(event)


def search(generator: Any, judge: Any, wanted: SearchSettings) -> tuple[Search, Told]:
    """A search under way, and what it tells."""
    told = Told()
    return Search(ask(), generator, judge, wanted, told.hear), told


async def decisions(
    method: Callable[[Search], Awaitable[object]],
    generator: Any,
    judge: Any,
    wanted: SearchSettings,
) -> list[StageTrace]:
    """What a method decides."""
    started, told = search(generator, judge, wanted)
    await method(started)
    return told.stages


def by_number(text: str) -> float:
    """The last whole number among the words of a text, as its score."""
    return float([word for word in text.split() if word.lstrip("-").isdigit()][-1])


def staged(answer: str, thought: str = "thinking") -> str:
    """A whole staged answer with this conclusion."""
    bodies: dict[Stage, str] = dict.fromkeys(STAGES, thought)
    return render({**bodies, Stage.CONCLUSION: answer})


def beam_script(lines: Mapping[Stage, Sequence[Say]]) -> dict[str, Sequence[Say]]:
    return {stage.close_tag: said for stage, said in lines.items()}


def calibration(folder: Path, cutoff: float = -1e9, **cutoffs: float) -> Path:
    """A calibration file with one cutoff for every stage but those named."""
    figures = {
        stage: StageScores(count=2, mean=0, std=0, cutoff=cutoffs.get(stage.value, cutoff))
        for stage in STAGES
    }
    path = folder / "calibration.json"
    write_calibration(Calibration(generator="g1", judge="j1", z=0.0, stages=figures, rows=()), path)
    return path


def ask(text: str = "How many red balls are there?", image: bytes = b"image") -> Prompt:
    return Prompt((Message("user", text),), (image,))


def settings(**changed: object) -> SearchSettings:
    return SearchSettings(**{"temperature": 1.0, **changed})  # type: ignore[arg-type]


@pytest.fixture
def kit() -> SimpleNamespace:
    """Everything above; tests are no package, so that they cannot import it."""
    return SimpleNamespace(
        Say=Say,
        ScriptedGenerator=ScriptedGenerator,
        SeededGenerator=SeededGenerator,
        HangingGenerator=HangingGenerator,
        ScriptedJudge=ScriptedJudge,
        FailingJudge=FailingJudge,
        by_number=by_number,
        staged=staged,
        beam_script=beam_script,
        ask=ask,
        settings=settings,
        search=search,
        decisions=decisions,
        calibration=calibration,
    )
