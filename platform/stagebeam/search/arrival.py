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
        self._calls: list[asyncio.Task[None]] = []
        self._there: dict[str, Candidate] = {}  # those that play, by text
        self._over = asyncio.Event()  # a wide match, or a call that broke the protocol

    def greet(self, candidate: Candidate) -> None:
        """Let a newcomer meet all that are there. Copies and rule losses are left out."""
        arena = self._arena
        if candidate.text in self._there or not arena.spot.valid(candidate):
            return
        pairs = [(other.index, candidate.index) for other in self._there.values()]
        self._there[candidate.text] = candidate
        arena.players |= {player.index: player for player in self._there.values()}
        if pairs:
            self._calls.append(asyncio.create_task(self._meet(pairs)))

    async def gather(self, draw: Draw, indices: Sequence[int]) -> int | None:
        """Draw the candidates and hear the judge about each; the winner if a wide match ended it.

        Whatever ends this ends the generator's call and the judge's.
        """
        drawing = asyncio.create_task(draw.more(indices))
        stopped = asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait({drawing, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not self._over.is_set():
                await drawing
                await self._heard_all(stopped)
            for call in self._calls:
                if call.done():
                    call.result()  # raises what the call raised
            return self._runaway()
        finally:
            await _end({drawing, stopped, *self._calls})
            arena = self._arena
            arena.usage += Usage(sequential_passes=arena.overlapping)
            arena.overlapping = 0

    async def _heard_all(self, stopped: asyncio.Task[bool]) -> None:
        """Wait for the judge about those that came last, unless a wide match ends that too."""
        pending: set[asyncio.Task[None]] = set(self._calls)
        while pending and not self._over.is_set():
            await asyncio.wait({*pending, stopped}, return_when=asyncio.FIRST_COMPLETED)
            pending = {call for call in pending if not call.done()}

    async def _meet(self, pairs: list[tuple[int, int]]) -> None:
        try:
            await self._arena.ask(pairs, beside_decoding=True)
        except Exception:
            self._over.set()
            raise
        if self._runaway() is not None:
            self._over.set()

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
