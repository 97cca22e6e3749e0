"""The generator deployment: one engine a replica, many calls at once in its batches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from stagebeam.inference.types import Candidate, GenerateRequest, Usage
from stagebeam.recipe import EngineConfig

Loader = Callable[[EngineConfig], Any]


def load(config: EngineConfig) -> Any:
    """The engine that the recipe names. Imported here, so that only replicas load torch."""
    from stagebeam.inference.load import load_generator

    return load_generator(config)


class GeneratorReplica:
    """An engine behind Serve; `loader` makes it inside the replica."""

    def __init__(self, config: EngineConfig, loader: Loader = load) -> None:
        self._engine = loader(config)

    async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
        """Candidates as they finish, then the call's usage."""
        async for item in self._engine.propose(request):
            yield item

    async def fingerprint(self) -> str:
        """Of the weights and settings behind the answers."""
        return str(self._engine.fingerprint)

    def __del__(self) -> None:
        """Serve calls this when it stops the replica."""
        engine = getattr(self, "_engine", None)  # absent where the loader failed
        if engine is not None:
            engine.close()
