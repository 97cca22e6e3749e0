"""The judge deployment: one judge a replica, many comparisons at once in its batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from serve import logs
from serve.counting import Questions, Ticket
from stagebeam.inference.types import Judgement, JudgeRequest
from stagebeam.recipe import JudgeConfig

Loader = Callable[[JudgeConfig], Any]


def load(config: JudgeConfig) -> Any:
    """The judge that the recipe names. Imported here, so that only replicas load torch."""
    from stagebeam.inference.load import load_judge

    return load_judge(config)


class JudgeReplica:
    """A judge behind Serve; `loader` makes it inside the replica."""

    def __init__(self, config: JudgeConfig, loader: Loader = load) -> None:
        logs.set_up()
        self._engine = loader(config)
        self._questions = Questions()

    async def compare(self, request: JudgeRequest, ticket: Ticket | None = None) -> Judgement:
        """One verdict for each pair."""
        with self._questions.counted(ticket):
            judgement: Judgement = await self._engine.compare(request)
        return judgement

    async def judge_fingerprint(self) -> str:
        """Of the weights and settings behind the verdicts."""
        return str(self._engine.fingerprint)

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
