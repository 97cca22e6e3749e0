"""One answer at temperature 0, in one call: what every search is compared with.

The same call finishes what a search leaves undone when a limit of the answer is reached.
"""

from __future__ import annotations

from stagebeam.search.events import StageOpened
from stagebeam.search.propose import Draw
from stagebeam.search.state import Search, Spot


async def greedy(search: Search) -> None:
    """Decides the one whole answer. The judge is not asked."""
    await _alone(search, search.spot(None))


async def finish(search: Search, prefix: str) -> None:
    """What is missing after `prefix`, greedily, with all that is left of the limits."""
    await _alone(search, search.rest(prefix))


async def _alone(search: Search, spot: Spot) -> None:
    await search.emit(StageOpened(spot.visit, spot.name, 1))
    draw = Draw(search, spot, greedily=True)
    await draw.more(range(1))
    await draw.decide(0)
