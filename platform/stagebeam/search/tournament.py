"""Who goes on: candidates compared in pairs, one judge call a round.

Forms: `chain` is the paper's (arXiv 2411.10440, section 3.3: random pairs, the winner meets the
next, N-1 matches one after another), `bracket` a knock-out in ceil(log2 N) rounds, `round_robin`
all pairs in one round, `finals` rounds in small groups until four are left, who all meet; `arrival`
is a round robin that was asked while candidates still came (search/arrival.py). A match wider than
`early_stop_margin` ends a chain, a knock-out or the rounds in groups.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from itertools import combinations, pairwise

from stagebeam.search.arena import Arena
from stagebeam.search.settings import ROUND_ROBIN_UP_TO, Form
from stagebeam.search.trace import MatchTrace


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


async def _bracket(arena: Arena, order: list[int]) -> int:
    while len(order) > 1:
        bye = order[-1:] if len(order) % 2 else []
        played = await arena.play_round(list(zip(order[::2], order[1::2], strict=False)))
        if (winner := arena.runaway(played)) is not None:
            return winner
        order = [match.winner for match in played] + bye
    return order[0]


async def _finals(arena: Arena, order: list[int]) -> int:
    """As few rounds as groups of four allow, and in those the fewest pairs: each round leaves
    the largest power of four that is below what there was."""
    while len(order) > ROUND_ROBIN_UP_TO:
        left = ROUND_ROBIN_UP_TO
        while left * ROUND_ROBIN_UP_TO < len(order):
            left *= ROUND_ROBIN_UP_TO
        groups = _split(order, left)
        played = await arena.play_round([pair for group in groups for pair in _all_pairs(group)])
        if (winner := arena.runaway(played)) is not None:
            return winner
        order = [_leader(arena, group, played) for group in groups]
    return await _round_robin(arena, order)


async def _round_robin(arena: Arena, order: list[int]) -> int:
    return _leader(arena, order, await arena.play_round(_all_pairs(order)))


def _split(order: list[int], count: int) -> list[list[int]]:
    """So many groups, in order, whose sizes differ by one at most."""
    ends = [len(order) * place // count for place in range(count + 1)]
    return [order[start:end] for start, end in pairwise(ends)]


def _all_pairs(group: Sequence[int]) -> list[tuple[int, int]]:
    return list(combinations(sorted(group), 2))


def _leader(arena: Arena, group: Sequence[int], played: Sequence[MatchTrace]) -> int:
    """Who did best in the group's matches: by wins, then by the sum of margins."""
    wins: Counter[int] = Counter()
    margins = dict.fromkeys(group, 0.0)
    for match in played:
        if match.a in margins:
            wins[match.winner] += 1
            margins[match.a] += match.margin
            margins[match.b] -= match.margin
    return max(group, key=lambda i: (wins[i], margins[i], arena.standing(i)))


_FORMS: dict[Form, Callable[[Arena, list[int]], Awaitable[int]]] = {
    "chain": _chain,
    "bracket": _bracket,
    "finals": _finals,
    "round_robin": _round_robin,
    "arrival": _round_robin,
}
