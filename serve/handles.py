"""The engine protocols over Ray Serve handles: affinity for caches, retries for dead replicas.

Serve does not retry a call in flight. Every call of the protocols carries all that is needed and
its seeds, so calling again gives the same answer. Only the death of a replica is retried; an
error that the called code raised would only be raised again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from tenacity import (
    AsyncRetrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential_jitter,
)

from serve import meters
from serve.counting import Ticket
from serve.routing import session_id
from stagebeam.inference.types import (
    Candidate,
    GenerateRequest,
    Judgement,
    JudgeRequest,
    Prompt,
    Usage,
)
from stagebeam.search import SearchSettings
from stagebeam.search.events import Event, Restarted

# Bounded, so that a request which kills its replicas cannot take the whole deployment along.
ATTEMPTS = 5


class RefusedError(ValueError):
    """The question cannot be asked of this model, in one sentence for the user."""


class DrainingError(RuntimeError):
    """The server is being stopped and takes no new questions."""


class HandleGenerator:
    """`Generator` over the generator deployment; the same part of a question always goes to the
    same replica, and its parts to different ones."""

    def __init__(
        self, handle: DeploymentHandle, question_key: str, ticket: Ticket | None, part: int = 0
    ) -> None:
        self._propose = handle.options(
            method_name="propose", stream=True, session_id=session_id(question_key, part)
        )
        self._ticket = ticket

    async def propose(self, request: GenerateRequest) -> AsyncGenerator[Candidate | Usage]:
        """Candidates as they finish, then usage; closing the iterator stops the engine's work.

        A retry may give an index again. Raises RefusedError where the engine refuses the question.
        """
        items = _retried("generator", lambda: self._propose.remote(request, self._ticket))
        try:
            async with aclosing(items):
                async for item in items:
                    yield item
        except RayTaskError as error:
            raise _refusal(error, ValueError) or error from None


class HandleJudge:
    """`Judge` over the judge deployment, placed as by `HandleGenerator`."""

    def __init__(
        self, handle: DeploymentHandle, question_key: str, ticket: Ticket | None, part: int = 0
    ) -> None:
        self._compare = handle.options(
            method_name="compare", session_id=session_id(question_key, part)
        )
        self._ticket = ticket

    async def compare(self, request: JudgeRequest) -> Judgement:
        """One verdict a pair. Raises RefusedError where the engine refuses the question."""
        try:
            async for attempt in _retrying("judge"):
                with attempt:
                    judgement = await self._once(request)
        except RayTaskError as error:
            raise _refusal(error, ValueError) or error from None
        return judgement

    async def _once(self, request: JudgeRequest) -> Judgement:
        response = self._compare.remote(request, self._ticket)
        try:
            judgement: Judgement = await response
        except asyncio.CancelledError:
            response.cancel()  # as a stream's: no work for a caller who has left
            raise
        return judgement


class HandleEngines:
    """The generator and judge deployments, asked who they are; generators may judge too."""

    def __init__(self, generator: DeploymentHandle, judge: DeploymentHandle | None) -> None:
        self._generator, self._judge = generator, judge or generator

    async def fingerprints(self) -> tuple[str, str]:
        """The generator's and the judge's, of live replicas."""
        generator, judge = await asyncio.gather(
            _answered("generator", self._generator.fingerprint.remote),
            _answered("judge", self._judge.judge_fingerprint.remote),
        )
        return generator, judge


class HandleSearcher:
    """The searcher deployment, as the gateway calls it."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._search = handle.options(method_name="search", stream=True)
        self._fingerprints = handle.options(method_name="fingerprints")

    async def search(
        self,
        prompt: Prompt,
        settings: SearchSettings,
        watched: bool = True,
        undivided: bool = False,
    ) -> AsyncGenerator[Event]:
        """What happens, as it happens, the trace last; after a retry `Restarted`, and all anew.
        Unless `watched`, the trace alone. `undivided`: on one replica of each engine.

        Raises RefusedError where an engine refuses the question.
        """
        calls = heard = 0

        def call() -> Any:
            nonlocal calls
            calls += 1
            return self._search.remote(prompt, settings, watched, undivided)

        items = _retried("searcher", call)
        try:
            async with aclosing(items):
                async for item in items:
                    if heard not in (0, calls):
                        yield Restarted()
                    heard = calls
                    yield item
        except RayTaskError as error:
            raise _refusal(error, RefusedError) or error from None

    async def fingerprints(self) -> tuple[str, str]:
        """The generator's and the judge's."""
        found: tuple[str, str] = await _answered("searcher", self._fingerprints.remote)
        return found


async def _answered(deployment: str, call: Callable[[], Any]) -> Any:
    """What a call gives, which is made again when its replica dies."""
    async for attempt in _retrying(deployment):
        with attempt:
            answer = await call()
    return answer


async def _retried(deployment: str, call: Callable[[], Any]) -> AsyncGenerator[Any]:
    """The items of a streaming call, which starts over when its replica dies.

    Items given before the death are given again, and are equal; who reads them passes over them.
    """
    async for attempt in _retrying(deployment):
        with attempt:
            stream: DeploymentResponseGenerator[Any] = call()
            try:
                async for item in stream:
                    yield item
            except (asyncio.CancelledError, GeneratorExit):
                stream.cancel()  # no work goes on for a caller who has left
                raise


def _retrying(deployment: str) -> AsyncRetrying:
    return AsyncRetrying(
        retry=retry_if_exception(_replica_died),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential_jitter(initial=0.1, max=2.0, jitter=0.1),
        before_sleep=lambda _: meters.retried(deployment),
        reraise=True,
    )


def _replica_died(error: BaseException) -> bool:
    # An error of the called code is a RayTaskError, and an instance of its cause's class too.
    return isinstance(error, RayActorError) and not isinstance(error, RayTaskError)


def _refusal(error: RayTaskError, kind: type[ValueError]) -> RefusedError | None:
    return RefusedError(str(error.cause)) if isinstance(error.cause, kind) else None
