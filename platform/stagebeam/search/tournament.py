"""Who goes on: candidates compared in pairs, one judge call a round.

Forms: `chain` is the paper's (arXiv 2411.10440, section 3.3: random pairs, the winner meets the
next, N-1 matches one after another), `bracket` a knock-out in ceil(log2 N) rounds, `round_robin`
all pairs in one round, `finals` a knock-out until four are left, who all meet; `arrival` is a round
robin that was asked while candidates still came (search/arrival.py). A match wider than
`early_stop_margin` ends a chain or a knock-out.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import combinations

from stagebeam.search.arena import Arena
from stagebeam.search.settings import ROUND_ROBIN_UP_TO, Form


async def play(arena: Arena, form: Form, seed: int) -> int:
    """Index of the winner among the arena's players. `seed` draws all forms but those where
    everybody meets."""
    order = list(arena.players)
    if len(order) == 1:
        return order[0]
    random.Random(seed).shuffle(order)
    return await _FORMS[form](arena, order)


async def _chain(arena: Arena, order: list[int]) -> int:
    champion = order[0]
    for challenger in order[1:]:
        played = await arena.play_round([(champion, challenger)])
        champion = played[0].winner
        if arena.runaway(played) is not None:
            break
    return champion


async def _knock_out(arena: Arena, order: list[int], left: int) -> list[int]:
    """Rounds until at most so many are left."""
    while len(order) > left:
        bye = order[-1:] if len(order) % 2 else []
        played = await arena.play_round(list(zip(order[::2], order[1::2], strict=False)))
        if (winner := arena.runaway(played)) is not None:
            return [winner]
        order = [match.winner for match in played] + bye
    return order


async def _bracket(arena: Arena, order: list[int]) -> int:
    (winner,) = await _knock_out(arena, order, 1)
    return winner


async def _finals(arena: Arena, order: list[int]) -> int:
    order = await _knock_out(arena, order, ROUND_ROBIN_UP_TO)
    return order[0] if len(order) == 1 else await _round_robin(arena, order)


async def _round_robin(arena: Arena, order: list[int]) -> int:
    wins: Counter[int] = Counter()
    margins = dict.fromkeys(order, 0.0)
    for match in await arena.play_round(list(combinations(sorted(order), 2))):
        wins[match.winner] += 1
        margins[match.a] += match.margin
        margins[match.b] -= match.margin
    return max(order, key=lambda i: (wins[i], margins[i], arena.standing(i)))


_FORMS: dict[Form, Callable[[Arena, list[int]], Awaitable[int]]] = {
    "chain": _chain,
    "bracket": _bracket,
    "finals": _finals,
    "round_robin": _round_robin,
    "arrival": _round_robin,
}
