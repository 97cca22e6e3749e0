"""Judging while candidates still come: each newcomer is compared with all that are there.

Every pair is asked about once whatever the order, and settled as a round robin when all are in.
So the winner, the matches and how many calls are made do not depend on the order of arrival; which
call holds which pairs does, and with it the judge's tokens. With an `early_stop_margin` the winner
does too: the first match that is wider ends the drawing itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import combinations

from stagebeam.inference.types import Candidate, Usage
from stagebeam.search.arena import Arena
from stagebeam.search.propose import Draw


class Arrivals:
    """Fills `arena` with verdicts about the candidates of `draw`, beside their decoding."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._calls: set[asyncio.Task[None]] = set()
        self._there: dict[str, int] = {}  # text -> index of those that play
        self._wide = asyncio.Event()

    def greet(self, candidate: Candidate) -> None:
        """Let a newcomer meet all that are there. Copies and rule losses are left out."""
        arena = self._arena
        if candidate.text in self._there or not arena.spot.valid(candidate):
            return
        pairs = [(other, candidate.index) for other in self._there.values()]
        self._there[candidate.text] = candidate.index
        arena.players[candidate.index] = candidate
        if pairs:
            self._calls.add(asyncio.create_task(self._meet(pairs)))

    async def gather(self, draw: Draw, indices: Sequence[int]) -> int | None:
        """Draw the candidates and hear the judge about each; the winner if a wide match ended it.

        Whatever ends this ends the generator's call and the judge's.
        """
        drawing = asyncio.create_task(draw.more(indices))
        stopped = asyncio.create_task(self._wide.wait())
        try:
            await asyncio.wait({drawing, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not self._wide.is_set():
                await drawing
                await self._heard_all(stopped)
            return self._runaway() if self._wide.is_set() else None
        finally:
            await _end({drawing, stopped, *self._calls})
            arena = self._arena
            arena.usage += Usage(sequential_passes=arena.overlapping)
            arena.overlapping = 0

    async def _heard_all(self, stopped: asyncio.Task[bool]) -> None:
        """Wait for the judge about those that came last, unless a wide match ends that too."""
        pending = set(self._calls)
        while pending and not self._wide.is_set():
            done, _ = await asyncio.wait({*pending, stopped}, return_when=asyncio.FIRST_COMPLETED)
            pending -= done
        for call in self._calls:
            if call.done():
                call.result()  # raises what the call raised

    async def _meet(self, pairs: list[tuple[int, int]]) -> None:
        await self._arena.ask(pairs, beside_decoding=True)
        if self._runaway() is not None:
            self._wide.set()

    def _runaway(self) -> int | None:
        """Who won the widest match so far, if it is wide enough to end the tournament."""
        arena, wide = self._arena, self._arena.search.settings.early_stop_margin
        margins = {
            pair: heard.verdict.margin
            for pair in combinations(sorted(arena.players), 2)
            if (heard := arena.heard(pair)) is not None
        }
        if wide is None or not margins:
            return None
        pair = max(margins, key=lambda p: abs(margins[p]))
        if abs(margins[pair]) <= wide:
            return None
        return pair[0] if margins[pair] > 0 else pair[1]


async def _end(tasks: set[asyncio.Task[None] | asyncio.Task[bool]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
