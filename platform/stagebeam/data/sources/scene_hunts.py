"""Text-only questions in which checking a reasoning is easier than finding it.

Which three of six numbers make a given one is a search over twenty threes, made before the first
number is named; whether the named ones make it is seen in two subtractions.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from itertools import combinations

from stagebeam.data.sources.scene_questions import Question

_NUMBERS = 6


@dataclass(frozen=True)
class _Hunt:
    """Six numbers, no two the same, and the only three of them that make their total."""

    numbers: tuple[int, ...]
    three: tuple[int, int, int]  # from the least on, so that there is one right text

    @classmethod
    def draw(cls, rng: random.Random, largest: int) -> _Hunt:
        numbers = rng.sample(range(1, largest + 1), _NUMBERS)
        threes = list(combinations(sorted(numbers), 3))
        totals = Counter(map(sum, threes))
        three = rng.choice([one for one in threes if totals[sum(one)] == 1])
        return cls(tuple(numbers), three)

    @property
    def total(self) -> int:
        return sum(self.three)

    @property
    def steps(self) -> str:
        """From the total down to the last number."""
        least, middle, most = self.three
        return (
            f"{least}: {self.total} minus {least} is {self.total - least}. "
            f"{middle}: {self.total - least} minus {middle} is {most}. {most}."
        )


def hunt(rng: random.Random, largest: int) -> Question:
    """Numbers of 1 to `largest`, no two the same, of which just three make what is asked for."""
    found = _Hunt.draw(rng, largest)
    threes = combinations(sorted(found.numbers), 3)
    return Question(
        text=f"Numbers: {_named(found.numbers)}. Which three make {found.total}, least first?",
        category="hunt",
        plan=f"I will find three that make {found.total}.",
        caption="There is no image.",
        reasoning=found.steps,
        answer=_named(found.three),
        wrong=tuple(_named(other) for other in threes if other != found.three),
    )


def two_hunts(rng: random.Random, largest: int) -> Question:
    """Two at once, each with a stage of its own: the caption, which has no image to tell of, and
    the reasoning. So two stages are in doubt, and one may be right where the other is wrong."""
    first, second = (_Hunt.draw(rng, largest) for _ in range(2))
    return Question(
        text=f"First: {_named(first.numbers)}. Second: {_named(second.numbers)}. Which three of "
        f"the first make {first.total}, and which three of the second make {second.total}?",
        category="two hunts",
        plan=f"I will find three that make {first.total}, and three that make {second.total}.",
        caption=first.steps,
        reasoning=second.steps,
        answer=f"{_named(first.three)}; {_named(second.three)}",
        wrong=(f"{_named(second.three)}; {_named(first.three)}",),
    )


def _named(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
