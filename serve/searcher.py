"""The searcher deployment: runs a question's search over the generator and judge deployments."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from ray.serve.handle import DeploymentHandle

from serve.handles import HandleGenerator, HandleJudge, RefusedError
from stagebeam.inference.types import Prompt
from stagebeam.search import SearchSettings, events
from stagebeam.search.events import Event
from stagebeam.search.seeds import question_key
from stagebeam.search.state import UnfitError


class Searcher:
    """Pure waiting: one replica holds many searches at once. Without a `judge` the generator's
    replicas judge too, and a question's calls meet on one of them."""

    def __init__(self, generator: DeploymentHandle, judge: DeploymentHandle | None) -> None:
        self._generator, self._judge = generator, judge or generator

    async def fingerprints(self) -> tuple[str, str]:
        """The generator's and the judge's, asked of live replicas."""
        # One after the other: in Ray 2.60 the first calls of one deployment, made at once by two
        # handles, wait for each other.
        generator: str = await self._generator.fingerprint.remote()
        judge: str = await self._judge.judge_fingerprint.remote()
        return generator, judge

    async def search(self, prompt: Prompt, settings: SearchSettings) -> AsyncIterator[Event]:
        """What happens, as it happens; last `Answered` with the whole trace.

        Raises RefusedError where an engine refuses the question, or cannot search as asked.
        """
        generator_id, judge_id = await self.fingerprints()
        key = question_key(prompt)
        stream = events(
            prompt,
            HandleGenerator(self._generator, key),
            HandleJudge(self._judge, key),
            settings,
            generator_id=generator_id,
            judge_id=judge_id,
        )
        try:
            async with aclosing(stream):
                async for event in stream:
                    yield event
        except UnfitError as error:
            raise RefusedError(str(error)) from None
