"""Engines whose behaviour follows from the question, so that real Serve is what is tested.

A question may hold `slow` (half a second a call), `steady` (a twentieth), `patient` (thirty),
`linger` (half a minute after each candidate), `marker` (the engine refuses it), `bug` (the engine
fails) or `mute` (the judge fails). The folder in the config's `model` receives one file for each
call that started, finished or was cancelled, and for each engine that was closed; an engine whose
`broken-<process>` lies there says that it does not work.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

from stagebeam.inference.types import (
    Candidate,
    GenerateRequest,
    Judgement,
    JudgeRequest,
    Prompt,
    Usage,
    Verdict,
)
from stagebeam.recipe import EngineConfig, JudgeConfig
from stagebeam.stages import STAGES, Stage, wrap

DELAYS_S = {"slow": 0.5, "steady": 0.05, "patient": 30.0}
SLOW_S = DELAYS_S["slow"]


class Scripted:
    """What both engines share."""

    def __init__(self, config: EngineConfig) -> None:
        self._log = Path(config.model)
        self.fingerprint = f"{type(self).__name__}-1"

    async def _think(self, prompt: Prompt) -> None:
        text = prompt.messages[-1].text
        if "marker" in text:
            raise ValueError("A message contains <|image|>, a marker of the chat template.")
        if "bug" in text:
            raise KeyError("a secret of the engine")
        await self._work(max(s if word in text else 0.0 for word, s in DELAYS_S.items()))

    async def _work(self, seconds: float) -> None:
        self._note("started")
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self._note("cancelled")
            raise
        self._note("finished")

    async def check(self) -> None:
        if (self._log / f"broken-{os.getpid()}").exists():
            raise RuntimeError("The engine is broken.")

    def close(self) -> None:
        self._note("closed")

    def _note(self, what: str) -> None:
        name = f"{what}-{type(self).__name__}-{os.getpid()}-{uuid.uuid4().hex}"
        (self._log / name).touch()


class ScriptedGenerator(Scripted):
    """One stage, or whole answers, made of the seed alone."""

    async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
        await self._think(request.prompt)
        whole = request.stops == (Stage.CONCLUSION.close_tag,) and not request.prefix
        stages = STAGES if whole else [s for s in STAGES if s.close_tag in request.stops]
        for index, seed in enumerate(request.seeds):
            word = "red" if request.prompt.images else f"answer {seed % 1000}"
            text = " ".join(wrap(s, f"{s.value.lower()} {word}") for s in stages)
            yield Candidate(index, text, 5, -1.0 - seed % 7, "stop")
            if "linger" in request.prompt.messages[-1].text:
                await self._work(30)
        yield Usage(
            image_encodes=len(request.prompt.images),
            prefill_tokens=10,
            decode_tokens=5 * len(request.seeds),
            sequential_passes=5,
            cache_hits=1,
        )


class ScriptedJudge(Scripted):
    """The longer text is the better one; of two equally long, the later in the alphabet."""

    async def compare(self, request: JudgeRequest) -> Judgement:
        await self._think(request.prompt)
        if "mute" in request.prompt.messages[-1].text:
            raise KeyError("a secret of the judge")
        ranks = [(len(text), text) for text in request.candidates]
        margins = [1.0 if ranks[a] > ranks[b] else -1.0 for a, b in request.pairs]
        return Judgement(
            tuple(Verdict(m, m) for m in margins), Usage(judge_tokens=3, judge_calls=1)
        )


def load_generator(config: EngineConfig) -> ScriptedGenerator:
    return ScriptedGenerator(config)


def load_judge(config: JudgeConfig) -> ScriptedJudge:
    return ScriptedJudge(config)


def no_such_model(config: EngineConfig) -> ScriptedGenerator:
    raise ValueError(f"There is no model at {config.model}.")
