"""The gateway over scripted engines in this process, without Ray: for all that is HTTP alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from scripted_engines import ScriptedGenerator, ScriptedJudge

from serve.gateway import http_app
from serve.handles import RefusedError
from serve.keys import Key
from stagebeam.gateway_config import KeysConfig
from stagebeam.inference.types import Prompt
from stagebeam.recipe import EngineConfig, JudgeConfig, Limits, ServeConfig
from stagebeam.search import SearchSettings, events
from stagebeam.search.events import Event
from stagebeam.search_config import SearchConfig

LIMITS = Limits(
    max_candidates=8,
    max_new_tokens=64,
    max_body_bytes=20_000,
    max_image_pixels=10_000,
    max_images=2,
    max_turns=4,
    max_text_chars=2_000,
    max_questions=3,
    methods=("greedy", "majority", "best_of_n", "stage_beam", "retrace"),
    tournaments=("chain", "round_robin", "finals", "arrival", "auto"),
    explain=False,
)
DEFAULTS = SearchConfig(candidates=3, max_new_tokens=32)


class QuietGenerator(ScriptedGenerator):
    """Keeps no notes."""

    def _note(self, what: str) -> None: ...


class QuietJudge(ScriptedJudge):
    """Keeps no notes."""

    def _note(self, what: str) -> None: ...


class LocalSearcher:
    """What the searcher deployment does, with its engines beside it."""

    def __init__(self) -> None:
        self._generator = QuietGenerator(EngineConfig(model="-"))
        self._judge = QuietJudge(JudgeConfig(model="-"))
        self.prompts: list[Prompt] = []
        self.running = 0

    async def fingerprints(self) -> tuple[str, str]:
        return self._generator.fingerprint, self._judge.fingerprint

    async def search(
        self,
        prompt: Prompt,
        settings: SearchSettings,
        watched: bool = True,
        undivided: bool = False,
    ) -> AsyncGenerator[Event]:
        self.prompts.append(prompt)
        self.running += 1
        stream = events(
            prompt, self._generator, self._judge, settings, generator_id="g", judge_id="j"
        )
        try:
            async with aclosing(stream):
                async for event in stream:
                    yield event
        except ValueError as error:
            raise RefusedError(str(error)) from None
        finally:
            self.running -= 1


def config_of(**fields: Any) -> ServeConfig:
    return ServeConfig(
        **{
            "model_name": "scripted",
            "generator": EngineConfig(model="-"),
            "judge": JudgeConfig(model="-"),
            "limits": LIMITS,
            **fields,
        }
    )


def app_of(
    searcher: LocalSearcher | None = None,
    keys: tuple[Key, ...] | None = None,
    keys_config: KeysConfig | None = None,
    engines: LocalSearcher | None = None,
    **fields: Any,
) -> FastAPI:
    config = config_of(keys=keys_config, **fields)
    return http_app(config, DEFAULTS, searcher or LocalSearcher(), keys=keys, engines=engines)


@contextmanager
def served_here(app: Any) -> Iterator[str]:
    """The application behind uvicorn on a free port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "uvicorn did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def quiet_generator(config: EngineConfig) -> QuietGenerator:
    return QuietGenerator(config)


def quiet_judge(config: JudgeConfig) -> QuietJudge:
    return QuietJudge(config)
