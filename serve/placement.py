"""A question on one replica, or divided over several: the same answer either way.

A candidate's text follows from its seed and a verdict from its pair, so it does not matter which
replica they come from; only what it costs does. Whoever divides gives each part the seeds (or the
pairs) that it would have had in one call, and puts the answers back in their places.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from typing import Literal, Protocol, TypeVar

from stagebeam.inference.together import at_once, gathered
from stagebeam.inference.types import (
    Candidate,
    GenerateRequest,
    Judge,
    Judgement,
    JudgeRequest,
    Usage,
)

Placement = Literal["pack", "spread", "auto"]

# A part of fewer candidates (or pairs) saves less waiting than it costs to read the prompt again.
LEAST_OF_A_PART = 2

_T = TypeVar("_T")


def parts_of(placement: Placement, items: int, replicas: int, questions: int) -> int:
    """In how many calls `items` candidates or pairs are asked for.

    `pack`: one. `spread`: one on each replica, while there are items for it. `auto`: over the
    replicas that would otherwise idle, live ones over questions under way, with at least
    LEAST_OF_A_PART items each; so one as soon as there are more than half as many questions as
    replicas.
    """
    if placement == "pack":
        parts = 1
    elif placement == "spread":
        parts = min(items, replicas)
    else:
        parts = min(items // LEAST_OF_A_PART, replicas // max(1, questions))
    return max(1, parts)


def shares(items: Sequence[_T], parts: int) -> list[Sequence[_T]]:
    """Neighbours together, the first parts larger by one where it does not come out even."""
    size, more = divmod(len(items), parts)
    ends = [number * size + min(number, more) for number in range(parts + 1)]
    return [items[start:end] for start, end in pairwise(ends)]


class Proposing(Protocol):
    """A generator whose iterators can be closed."""

    def propose(self, request: GenerateRequest) -> AsyncGenerator[Candidate | Usage]: ...


class DividedGenerator:
    """`Generator` that asks `part(number, of)` for each part of a call."""

    def __init__(self, part: Callable[[int, int], Proposing], parts: Callable[[int], int]) -> None:
        self._part, self._parts = part, parts

    async def propose(self, request: GenerateRequest) -> AsyncGenerator[Candidate | Usage]:
        """Candidates as they finish, wherever, then what all of them cost. Closing the iterator
        closes those of the parts; the first part that fails ends the others."""
        of = self._parts(len(request.seeds))
        places = shares(range(len(request.seeds)), of)
        if of == 1:
            async with aclosing(self._part(0, 1).propose(request)) as items:
                async for item in items:
                    yield item
            return
        came: asyncio.Queue[Candidate | None] = asyncio.Queue()

        async def read(number: int) -> Usage:
            mine = replace(request, seeds=tuple(request.seeds[i] for i in places[number]))
            usage = Usage()
            async with aclosing(self._part(number, of).propose(mine)) as items:
                async for item in items:
                    if isinstance(item, Usage):
                        usage = item
                    else:
                        came.put_nowait(replace(item, index=places[number][item.index]))
            return usage

        reading = asyncio.ensure_future(gathered(read(number) for number in range(of)))
        reading.add_done_callback(lambda _: came.put_nowait(None))
        try:
            while (candidate := await came.get()) is not None:
                yield candidate
            yield at_once(await reading)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


class DividedJudge:
    """`Judge` that asks `part(number, of)` about its share of a round's pairs."""

    def __init__(self, part: Callable[[int, int], Judge], parts: Callable[[int], int]) -> None:
        self._part, self._parts = part, parts

    async def compare(self, request: JudgeRequest) -> Judgement:
        """One verdict for each pair, in order; the first part that fails ends the others."""
        of = self._parts(len(request.pairs))
        if of == 1:
            return await self._part(0, 1).compare(request)
        found = await gathered(
            self._part(number, of).compare(replace(request, pairs=tuple(pairs)))
            for number, pairs in enumerate(shares(request.pairs, of))
        )
        return Judgement(
            tuple(verdict for part in found for verdict in part.verdicts),
            at_once(part.usage for part in found),
            scores=found[0].scores,  # of all candidates, which each part was shown
            explanations=tuple(line for part in found for line in part.explanations),
        )
