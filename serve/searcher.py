"""The searcher deployment: runs a question's search over the generator and judge deployments."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace

from ray.serve.handle import DeploymentHandle

from serve import live, logs, meters
from serve.counting import Ticket
from serve.handles import DrainingError, HandleEngines, HandleGenerator, HandleJudge, RefusedError
from serve.placement import DividedGenerator, DividedJudge, Placement, parts_of
from stagebeam.inference.types import Prompt
from stagebeam.recipe import JudgeConfig
from stagebeam.search import SearchSettings, events, trace_id_of
from stagebeam.search.events import Answered, Event
from stagebeam.search.seeds import question_key
from stagebeam.search.state import UnfitError
from stagebeam.search.trace import Trace

_logger = logging.getLogger("ray.serve")

# Judges that ask about a pair: those that score a text would do it again in each part.
_PAIRWISE = ("verdict", "text", "remote")


@dataclass(slots=True)
class _Account:
    """What a search came to, while it is under way."""

    trace: Trace | None = None
    outcome: str = "cancelled"


class Searcher:
    """Pure waiting: one replica holds many searches at once. Without a `judge` the generator's
    replicas judge too, and a question's calls meet on one of them."""

    def __init__(
        self,
        generator: DeploymentHandle,
        judge: DeploymentHandle | None,
        placement: Placement = "pack",
        judging: JudgeConfig | None = None,
    ) -> None:
        self._generator, self._judge = generator, judge or generator
        self._engines = HandleEngines(generator, judge)
        self._placement = placement
        # Where generators judge, image and prefix lie ready on one replica alone.
        divisible = judge is not None and judging is not None and judging.kind in _PAIRWISE
        self._judge_placement: Placement = placement if divisible else "pack"
        self._under_way = 0
        self._draining = False
        self._known: tuple[object, tuple[str, str]] | None = None
        logs.set_up()

    async def fingerprints(self) -> tuple[str, str]:
        """The generator's and the judge's, asked of live replicas.

        Raises DrainingError where the server is being stopped.
        """
        if self._draining:
            raise DrainingError("The server is being stopped.")
        return await self._engines.fingerprints()

    async def drain(self) -> int:
        """Take no more searches; how many are still under way."""
        self._draining = True
        return self._under_way

    async def search(
        self,
        prompt: Prompt,
        settings: SearchSettings,
        watched: bool = True,
        undivided: bool = False,
    ) -> AsyncIterator[Event]:
        """What happens, as it happens; last `Answered` with the whole trace. Unless `watched`, that
        alone: fifty more items on the way to the gateway are felt in an answer's time. `undivided`:
        on one replica of each engine, whatever the placement.

        Raises RefusedError where an engine refuses the question, or cannot search as asked, and
        DrainingError where the server is being stopped.
        """
        with self._accounted(settings) as account:
            try:
                generator_id, judge_id = await self._fingerprints_once()
                ticket = Ticket(
                    uuid.uuid4().hex, trace_id_of(prompt, settings, generator_id, judge_id)
                )
                logs.about(ticket.trace_id)
                stream = events(
                    prompt,
                    self._generators(prompt, ticket, undivided),
                    self._judges(prompt, ticket, undivided),
                    settings,
                    generator_id=generator_id,
                    judge_id=judge_id,
                )
                async with aclosing(stream):
                    async for event in stream:
                        if isinstance(event, Answered):
                            account.trace = event.trace
                            yield event
                        elif watched:
                            yield event
            except UnfitError as error:
                raise RefusedError(str(error)) from None

    async def _fingerprints_once(self) -> tuple[str, str]:
        """As `fingerprints`, but asked only when replicas have come or gone."""
        there = live.replicas("generator"), live.replicas("judge")
        if self._draining or self._known is None or self._known[0] != there:
            found = await self.fingerprints()
            self._known = (live.replicas("generator"), live.replicas("judge")), found
        return self._known[1]

    def _generators(self, prompt: Prompt, ticket: Ticket, undivided: bool) -> DividedGenerator:
        key = question_key(prompt)
        placement: Placement = "pack" if undivided else self._placement
        return DividedGenerator(
            lambda part, of: HandleGenerator(
                self._generator, key, replace(ticket, share=1 / of), part
            ),
            lambda items: self._parts(placement, items, "generator"),
        )

    def _judges(self, prompt: Prompt, ticket: Ticket, undivided: bool) -> DividedJudge:
        key = question_key(prompt)
        placement: Placement = "pack" if undivided else self._judge_placement
        return DividedJudge(
            lambda part, of: HandleJudge(self._judge, key, replace(ticket, share=1 / of), part),
            lambda items: self._parts(placement, items, "judge"),
        )

    def _parts(self, placement: Placement, items: int, deployment: str) -> int:
        return parts_of(placement, items, len(live.replicas(deployment)), self._under_way)

    @contextmanager
    def _accounted(self, settings: SearchSettings) -> Iterator[_Account]:
        """Counts a search while it is under way, and what came of it afterwards."""
        account, started = _Account(), time.perf_counter()
        self._under_way += 1
        meters.under_way(self._under_way)
        try:
            yield account
            account.outcome = "answered"
        except RefusedError:
            account.outcome = "refused"
            raise
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except Exception:
            account.outcome = "failed"
            raise
        finally:
            self._under_way -= 1
            self._tell(account, settings.method, time.perf_counter() - started)

    def _tell(self, account: _Account, method: str, seconds: float) -> None:
        trace, outcome = account.trace, account.outcome
        if trace is not None:
            outcome = "answered" if trace.limited is None else "limited"
            meters.answered(trace)
        meters.under_way(self._under_way)
        meters.ended(method, outcome, seconds)
        _logger.info("A search by %s was %s after %.3f s.", method, outcome, seconds)
