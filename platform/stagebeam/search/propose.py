"""Candidates of one place in the answer, told as they come, gathered and checked."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from stagebeam.inference.types import Candidate, GenerateRequest, Usage
from stagebeam.search.events import CandidateFinished, StageDecided
from stagebeam.search.limits import OutOfBudget, Share
from stagebeam.search.seeds import candidate_seed
from stagebeam.search.state import Search, SearchError, Spot, usage_trace


class Draw:
    """What the generator proposed for a spot, in one call or several.

    `on_candidate` hears of each one at once. Calls that end early (a limit, an early stop) leave
    what had come; their generator's iterator is closed.
    """

    def __init__(
        self,
        search: Search,
        spot: Spot,
        *,
        greedily: bool = False,
        parent: int | None = None,
        on_candidate: Callable[[Candidate], None] | None = None,
    ) -> None:
        self.search, self.spot = search, spot
        self.found: dict[int, Candidate] = {}
        self.cut: set[int] = set()  # by a limit of the answer
        self.usage, self.seconds = Usage(), 0.0
        self._greedily, self._parent, self._on_candidate = greedily, parent, on_candidate

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """By index, whatever the order in which they came."""
        return tuple(self.found[index] for index in sorted(self.found))

    async def more(self, indices: Sequence[int], *, beside: int = 0) -> None:
        """Draw the candidates with these indices, in one call; `beside` is how many are drawn at
        the same time in all, where other calls draw too.

        Raises SearchError if one is missing or its log-probability is not a number, OutOfBudget
        if a limit left none at all.
        """
        try:
            share = self.search.allowance.share(max(beside, len(indices)), self.spot.longest)
        except OutOfBudget as out:
            await self.search.limit(out.limit)
            raise
        before, started = len(self.found), time.perf_counter()
        clock = asyncio.timeout(self.search.allowance.left())
        whole = False
        try:
            async with clock:
                await self._read(self._request(indices, share), indices, share)
            whole = True
        except TimeoutError:
            if not clock.expired():
                raise
            await self.search.limit("seconds")
        finally:
            self.seconds += time.perf_counter() - started
            if not whole:
                self._estimate(indices)
        if whole and not set(indices) <= self.found.keys():
            raise SearchError(
                f"The generator returned {len(self.found) - before} of {len(indices)} candidates "
                f"for {self.spot.name}."
            )
        if not self.found:
            raise OutOfBudget("seconds")

    async def decide(self, winner: int) -> Candidate:
        """Make it the spot's winner where no judge had a say."""
        usage = usage_trace(self.usage, self.seconds)
        await self.search.emit(StageDecided(self.spot.visit, winner, usage))
        return self.found[winner]

    def _request(self, indices: Sequence[int], share: Share) -> GenerateRequest:
        search, spot = self.search, self.spot
        seed = search.settings.seed
        sampling = replace(search.settings.sampling, max_new_tokens=share.tokens)
        if self._greedily:
            sampling = replace(sampling, temperature=0.0)
        seeds = tuple(candidate_seed(seed, search.key, spot.key, i) for i in indices)
        return GenerateRequest(
            search.prompt, spot.prefix, spot.stops, seeds, sampling, share.seconds
        )

    async def _read(self, request: GenerateRequest, indices: Sequence[int], share: Share) -> None:
        async with _closing(self.search.generator.propose(request)) as items:
            async for item in items:
                if isinstance(item, Usage):
                    self.usage += item
                elif not 0 <= item.index < len(indices):
                    raise SearchError(
                        f"The generator returned candidate {item.index} of {len(indices)} "
                        f"for {self.spot.name}."
                    )
                # A stream that was retried may give an index twice; the text is the same.
                elif indices[item.index] not in self.found:
                    await self._add(replace(item, index=indices[item.index]), share)

    async def _add(self, candidate: Candidate, share: Share) -> None:
        if not math.isfinite(candidate.logprob):
            raise SearchError(
                f"A candidate for {self.spot.name} has a log-probability that is not finite."
            )
        self.found[candidate.index] = candidate
        self.search.allowance.spend(candidate.tokens)
        if self._on_candidate is not None:
            self._on_candidate(candidate)
        limit = self.search.allowance.cut(candidate, share, self.spot.longest)
        if limit is not None:
            self.cut.add(candidate.index)
            await self.search.limit(limit)
        told = self.spot.trace(candidate, self._parent)
        await self.search.emit(CandidateFinished(self.spot.visit, told))

    def _estimate(self, indices: Sequence[int]) -> None:
        """Tokens of a call that was ended before it told its usage: candidates decode side by
        side, so those that were not done had about as many as the longest that was."""
        came = [self.found[i].tokens for i in indices if i in self.found]
        longest = max(came, default=0)
        unfinished = (len(indices) - len(came)) * longest
        self.search.allowance.spend(unfinished)
        self.usage += Usage(decode_tokens=sum(came) + unfinished, sequential_passes=longest)


@asynccontextmanager
async def _closing(
    items: AsyncIterator[Candidate | Usage],
) -> AsyncIterator[AsyncIterator[Candidate | Usage]]:
    """Closes the iterator at the end, whatever ended it: that stops the engine's work."""
    try:
        yield items
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()
