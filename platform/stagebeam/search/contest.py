"""One judged decision: candidates drawn, a tournament played, the result told."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from stagebeam.inference.types import Candidate
from stagebeam.search.arena import Arena
from stagebeam.search.arrival import Arrivals
from stagebeam.search.events import StageDecided, StageOpened
from stagebeam.search.limits import OutOfBudget
from stagebeam.search.propose import Draw
from stagebeam.search.seeds import candidate_seed
from stagebeam.search.state import Search, Spot, usage_trace
from stagebeam.search.tournament import play
from stagebeam.search.votes import ballots

FIRST = 2  # candidates that an adaptive budget starts with


@dataclass(frozen=True, slots=True)
class Decision:
    """The winner; `cut` where a limit of the answer cut it, so that it can be finished."""

    winner: Candidate
    cut: bool


async def contest(search: Search, spot: Spot, n: int) -> Decision:
    """Draw and decide what comes at `spot`. The judge may be None where n is 1.

    Raises SearchError if generator or judge break their protocol, OutOfBudget if a limit left no
    candidate; the generator's own errors pass through.
    """
    return await _Contest(search, spot, n).held()


class _Contest:
    def __init__(self, search: Search, spot: Spot, n: int) -> None:
        self._search, self._spot, self._n = search, spot, n
        self._arena = Arena(search, spot)
        self._arrivals = Arrivals(self._arena) if self._overlaps else None
        on_candidate = self._arrivals.greet if self._arrivals else None
        self._draw = Draw(search, spot, on_candidate=on_candidate)

    @property
    def _overlaps(self) -> bool:
        return self._search.settings.form == "arrival" and self._n > 1

    async def held(self) -> Decision:
        settings = self._search.settings
        await self._search.emit(StageOpened(self._spot.visit, self._spot.name, self._n))
        started = time.perf_counter()
        adaptive = settings.budget == "adaptive" and self._n > FIRST
        winner = await self._gather(range(FIRST if adaptive else self._n))
        if adaptive and winner is None and not await self._settled():
            with suppress(OutOfBudget):  # then the first ones are what there is
                winner = await self._gather(range(FIRST, self._n))
        return await self._decide(winner, started)

    async def _gather(self, indices: Sequence[int]) -> int | None:
        """Draw; the winner's index where a wide match ended the tournament already."""
        if self._arrivals is None:
            await self._draw.more(indices)
            return None
        return await self._arrivals.gather(self._draw, indices)

    async def _settled(self) -> bool:
        """Whether the first two leave nothing to spend more on: they say the same, or one beats
        the other by more than `early_stop_margin` or by rule."""
        arena = self._arena
        arena.seat(self._draw.candidates)
        if len(arena.players) < FIRST:
            return bool(arena.players)
        if arena.spot.name in ("ANSWER", "CONCLUSION"):
            concluded = ballots(self._draw.candidates)
            if len(concluded) == FIRST and len(set(concluded.values())) == 1:
                return True
        a, b = arena.players
        if arena.heard((a, b)) is None:
            await arena.ask([(a, b)])
        heard, wide = arena.heard((a, b)), self._search.settings.early_stop_margin
        return heard is not None and wide is not None and abs(heard.verdict.margin) > wide

    async def _decide(self, winner: int | None, started: float) -> Decision:
        arena, draw, spot = self._arena, self._draw, self._spot
        settings = self._search.settings
        losers = arena.seat(draw.candidates)
        if not arena.players:
            winner = max(losers, key=lambda c: (c.mean_logprob, -c.index)).index
        else:
            await arena.rule_out(losers)
            if winner is None:
                key = self._search.key
                seed = candidate_seed(settings.seed, key, f"{spot.key} draw", 0)
                winner = await play(arena, settings.form, seed)
            else:
                winner = arena.merged_into.get(winner, winner)
                await arena.play_heard()
        await arena.tell_scores()
        usage = usage_trace(draw.usage + arena.usage, time.perf_counter() - started)
        decided = StageDecided(spot.visit, winner, usage, arena.merged_into)
        await self._search.emit(decided)
        return Decision(draw.found[winner], winner in draw.cut)
