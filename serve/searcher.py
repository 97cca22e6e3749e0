"""The searcher deployment: runs a question's search over the generator and judge deployments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from ray.serve.handle import DeploymentHandle

from serve.handles import HandleGenerator, HandleJudge
from stagebeam.inference.types import Prompt
from stagebeam.search import SearchSettings, answer
from stagebeam.search.seeds import question_key
from stagebeam.search.trace import StageTrace, Trace


class Searcher:
    """Pure waiting: one replica holds many searches at once."""

    def __init__(self, generator: DeploymentHandle, judge: DeploymentHandle) -> None:
        self._generator, self._judge = generator, judge

    async def fingerprints(self) -> tuple[str, str]:
        """The generator's and the judge's, asked of live replicas."""
        generator, judge = await asyncio.gather(
            self._generator.fingerprint.remote(), self._judge.fingerprint.remote()
        )
        return generator, judge

    async def search(
        self, prompt: Prompt, settings: SearchSettings
    ) -> AsyncIterator[StageTrace | Trace]:
        """Each decision as it is made, then the whole trace, last.

        Raises RefusedError where an engine refuses the question.
        """
        generator_id, judge_id = await self.fingerprints()
        key = question_key(prompt)
        decided: asyncio.Queue[StageTrace | Trace | None] = asyncio.Queue()

        async def run() -> None:
            try:
                trace = await answer(
                    prompt,
                    HandleGenerator(self._generator, key),
                    HandleJudge(self._judge, key),
                    settings,
                    generator_id=generator_id,
                    judge_id=judge_id,
                    on_stage=decided.put,
                )
                await decided.put(trace)
            finally:
                decided.put_nowait(None)

        task = asyncio.create_task(run())
        try:
            while (item := await decided.get()) is not None:
                yield item
            await task
        finally:
            task.cancel()
