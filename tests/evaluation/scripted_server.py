"""The real HTTP interface over the scripted world, on a free port of this machine."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from http_server import served
from scripted_world import ScriptedGenerator, ScriptedJudge, World

from serve.gateway import http_app
from serve.handles import RefusedError
from stagebeam.inference.types import Prompt
from stagebeam.recipe import EngineConfig, JudgeConfig, ServeConfig
from stagebeam.search import SearchSettings, answer
from stagebeam.search.events import Answered, Event
from stagebeam.search_config import SearchConfig

MODEL_NAME = "scripted"


@dataclass
class WorldSearcher:
    """Searches in this process. The first `outages` calls of each question fail, and questions
    with the word `refused` in them are refused. Keeps what it was asked.
    """

    world: World
    generator: ScriptedGenerator
    outages: int = 0
    pause: float = 0.0  # seconds that an answer takes
    calibration: Path | None = None  # of the service, as its recipe names it
    asked: list[tuple[Prompt, SearchSettings]] = field(default_factory=list)
    divisible: int = 0  # of these, those that could have been divided over replicas
    running: int = 0
    most_running: int = 0
    _calls: Counter[Prompt] = field(default_factory=Counter)

    async def search(
        self,
        prompt: Prompt,
        settings: SearchSettings,
        watched: bool = True,
        undivided: bool = False,
    ) -> AsyncGenerator[Event]:
        self.asked.append((prompt, settings))
        self.divisible += not undivided
        self._calls[prompt] += 1
        if self._calls[prompt] <= self.outages:
            raise RuntimeError("a replica died")
        if "refused" in prompt.messages[-1].text:
            raise RefusedError("A message contains a marker of the chat template.")
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(self.pause)
        generator_id, judge_id = await self.fingerprints()
        trace = await answer(
            prompt,
            self.generator,
            ScriptedJudge(self.world),
            replace(settings, calibration=self.calibration),
            generator_id=generator_id,
            judge_id=judge_id,
        )
        self.running -= 1
        yield Answered(trace)

    async def fingerprints(self) -> tuple[str, str]:
        return f"scripted-{self.generator.skill}", "scripted-judge"


@contextmanager
def http_world(searcher: WorldSearcher) -> Iterator[str]:
    """Serve on a free port; yields the base URL and stops the server at the end."""
    config = ServeConfig(
        model_name=MODEL_NAME,
        generator=EngineConfig(model="scripted"),
        judge=JudgeConfig(model="scripted"),
    )
    app = http_app(config, SearchConfig(), searcher)
    with served(app) as url:
        yield url
