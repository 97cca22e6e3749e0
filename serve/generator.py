"""The generator deployment: one engine a replica, many calls at once in its batches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from serve import logs
from serve.counting import Questions, Ticket
from stagebeam.inference.types import (
    Candidate,
    GenerateRequest,
    Judge,
    Judgement,
    JudgeRequest,
    Usage,
)
from stagebeam.recipe import EngineConfig, JudgeConfig

Loader = Callable[[EngineConfig], Any]


def load(config: EngineConfig) -> Any:
    """The engine that the recipe names. Imported here, so that only replicas load torch."""
    from stagebeam.inference.load import load_generator

    return load_generator(config)


def judge_on(engine: Any, config: JudgeConfig) -> Judge:
    """A judge that reads with a generator's engine."""
    from stagebeam.inference.verdict import EngineJudge

    assert config.kind in ("verdict", "likelihood", "mean_likelihood"), "the recipe checks it"
    return EngineJudge(engine, config.kind, config.scaling.max_batch_rows)


class GeneratorReplica:
    """An engine behind Serve; `loader` makes it inside the replica. A `judge` uses it too."""

    def __init__(
        self, config: EngineConfig, loader: Loader = load, judge: JudgeConfig | None = None
    ) -> None:
        logs.set_up()
        self._engine = loader(config)
        self._judge: Any = None if judge is None else judge_on(self._engine, judge)
        self._questions = Questions()

    async def propose(
        self, request: GenerateRequest, ticket: Ticket | None = None
    ) -> AsyncIterator[Candidate | Usage]:
        """Candidates as they finish, then the call's usage."""
        with self._questions.counted(ticket):
            async with aclosing(self._engine.propose(request)) as items:
                async for item in items:
                    yield item

    async def fingerprint(self) -> str:
        """Of the weights and settings behind the answers."""
        return str(self._engine.fingerprint)

    async def compare(self, request: JudgeRequest, ticket: Ticket | None = None) -> Judgement:
        """One verdict for each pair."""
        with self._questions.counted(ticket):
            judgement: Judgement = await self._judge.compare(request)
        return judgement

    async def judge_fingerprint(self) -> str:
        """Of the weights and settings behind the verdicts."""
        return str(self._judge.fingerprint)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve scales by (`serve/scaling.py`), asked every second."""
        return self._questions.reported()

    async def check_health(self) -> None:
        """Raises where the engine does not work any more; Serve then replaces the replica."""
        await self._engine.check()

    def __del__(self) -> None:
        """Serve calls this when it stops the replica."""
        engine = getattr(self, "_engine", None)  # absent where the loader failed
        if engine is not None:
            engine.close()
