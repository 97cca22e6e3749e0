"""N whole answers, compared as whole answers: the judge's baseline without stages."""

from __future__ import annotations

from stagebeam.search.contest import contest
from stagebeam.search.greedy import finish
from stagebeam.search.state import Search


async def best_of_n(search: Search) -> None:
    """Decides the one tournament. The judge may be None where N is 1."""
    decided = await contest(search, search.spot(None), search.settings.n)
    if decided.cut:
        await finish(search, decided.winner.text)
