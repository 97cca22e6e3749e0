"""Questions in which colours are worth numbers, where checking is easier than finding.

A hunt asks which two shapes are worth a given number together. Finding them is a search over all
pairs, made before the first word of the reasoning; whether a reasoning that is there holds is seen
in three small steps. A chain adds up along the picture, and each step can be checked alone.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

from stagebeam.data.sources.scene_questions import Question, Thing

_MOST = 9  # a colour's worth


def worths(rng: random.Random, colours: Sequence[str]) -> dict[str, int]:
    """A worth for each colour, no two the same, in the order in which a question lists them."""
    listed = rng.sample(list(colours), len(colours))
    return dict(zip(listed, rng.sample(range(1, _MOST + 1), len(listed)), strict=True))


def hunt(rng: random.Random, things: Sequence[Thing], worth: Mapping[str, int]) -> Question:
    """Two of `things`, whose colours all differ: the only two that are worth so much together.

    The reasoning may begin with either of them; the answer names them in the alphabet's order.
    """
    pairs = list(combinations([thing.colour for thing in things], 2))
    totals = Counter(worth[a] + worth[b] for a, b in pairs)
    pair = rng.choice([(a, b) for a, b in pairs if totals[worth[a] + worth[b]] == 1])
    first, second = rng.sample(pair, 2)
    total = worth[first] + worth[second]
    return Question(
        text=f"{_listed(worth)} Which two shapes are worth {total} together? "
        "Name their colours from A to Z.",
        category="hunt",
        plan=f"I will look for two shapes that are worth {total} together.",
        caption=_caption(things),
        reasoning=f"{first} is worth {worth[first]}. {total} minus {worth[first]} is "
        f"{worth[second]}. {second} is worth {worth[second]}.",
        answer=_named(pair),
        wrong=tuple(_named(other) for other in pairs if other != pair),
    )


def chain(rng: random.Random, things: Sequence[Thing], worth: Mapping[str, int]) -> Question:
    """The last digit of a running sum over `things`, of which only the last digit is kept."""
    start = digit = rng.randint(0, _MOST)
    steps = []
    for thing in things:
        added = worth[thing.colour]
        steps.append(f"{thing.colour}: {digit} plus {added} is {(digit + added) % 10}.")
        digit = (digit + added) % 10
    return Question(
        text=f"{_listed(worth)} Start at {start} and add every shape, keeping the last digit. "
        "Where does it end?",
        category="chain",
        plan=f"I will start at {start} and add the shapes one by one.",
        caption=_caption(things),
        reasoning=" ".join(steps),
        answer=str(digit),
        wrong=tuple(str(n) for n in range(10) if n != digit),
    )


def _listed(worth: Mapping[str, int]) -> str:
    return f"Worth: {', '.join(f'{colour} {number}' for colour, number in worth.items())}."


def _caption(things: Sequence[Thing]) -> str:
    return f"Shapes: {', '.join(map(str, things))}."


def _named(pair: tuple[str, str]) -> str:
    return " and ".join(sorted(pair))
