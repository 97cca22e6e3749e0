"""Questions in which colours are worth numbers, where checking is easier than finding.

A hunt asks which three shapes are worth a given number together. Finding them is a search over all
threes, made before the first of them is named; whether three that are named make the number is seen
in a few small steps. A chain adds up along the picture, and each step can be checked alone.
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
    """Three of `things`, whose colours all differ: the only three that are worth so much together.

    They are named from the least worth on, so that there is one right text of every stage.
    """
    threes = [sorted(three, key=worth.__getitem__) for three in combinations(_colours(things), 3)]
    totals = Counter(sum(map(worth.__getitem__, three)) for three in threes)
    three = rng.choice([one for one in threes if totals[sum(map(worth.__getitem__, one))] == 1])
    least, middle, most = three
    total = sum(map(worth.__getitem__, three))
    left = total - worth[least]
    known = ", ".join(f"{colour} {worth[colour]}" for colour in _colours(things))
    return Question(
        text=f"{_listed(worth)} Which three shapes make {total}, least first?",
        category="hunt",
        plan=f"I will find three shapes that make {total}.",
        caption=_caption(things),
        reasoning=f"{known}. {least} {worth[least]}: {total} minus {worth[least]} is {left}. "
        f"{middle} {worth[middle]}: {left} minus {worth[middle]} is {worth[most]}. "
        f"{most} {worth[most]}.",
        answer=", ".join(three),
        wrong=tuple(", ".join(other) for other in threes if other != three),
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
    return f"Points: {', '.join(f'{colour} {number}' for colour, number in worth.items())}."


def _colours(things: Sequence[Thing]) -> list[str]:
    return [thing.colour for thing in things]


def _caption(things: Sequence[Thing]) -> str:
    return f"Shapes: {', '.join(map(str, things))}."
