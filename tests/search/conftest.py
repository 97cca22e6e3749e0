"""Scripted generators and judges: every search runs in milliseconds and is wholly known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

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
from stagebeam.search.settings import SearchSettings
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
        if request.stops == (Stage.CONCLUSION.close_tag,) and not request.prefix:
            return render({s: f"{seed % 5}" for s in STAGES})
        stage = next(s for s in STAGES if s.close_tag in request.stops)
        return wrap(stage, f"{seed}")


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
    """Prefers the text with the higher score, with a constant bias for what it reads first."""

    score: Callable[[str], float]
    bias: float = 0.0
    usage: Usage = field(default_factory=lambda: Usage(judge_tokens=10))
    requests: list[JudgeRequest] = field(default_factory=list)

    async def compare(self, request: JudgeRequest) -> Judgement:
        self.requests.append(request)
        texts = request.candidates
        margins = [self.score(texts[a]) - self.score(texts[b]) for a, b in request.pairs]
        verdicts = tuple(Verdict(m + self.bias, m - self.bias) for m in margins)
        return Judgement(verdicts, self.usage)


class FailingJudge:
    async def compare(self, request: JudgeRequest) -> Judgement:
        raise ConnectionError("the judge is gone")


def by_number(text: str) -> float:
    """The last whole number among the words of a text, as its score."""
    return float([word for word in text.split() if word.lstrip("-").isdigit()][-1])


def staged(answer: str, thought: str = "thinking") -> str:
    """A whole staged answer with this conclusion."""
    bodies: dict[Stage, str] = dict.fromkeys(STAGES, thought)
    return render({**bodies, Stage.CONCLUSION: answer})


def beam_script(lines: Mapping[Stage, Sequence[Say]]) -> dict[str, Sequence[Say]]:
    return {stage.close_tag: said for stage, said in lines.items()}


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
    )
