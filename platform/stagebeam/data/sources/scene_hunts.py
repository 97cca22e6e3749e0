"""Text-only questions in which checking a reasoning is easier than finding it.

Which three of six numbers make a given one is a search over twenty threes, made before the first
number is named; whether the named ones make it is seen in two subtractions.
"""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations

from stagebeam.data.sources.scene_questions import Question

_NUMBERS = 6


def hunt(rng: random.Random, largest: int) -> Question:
    """Numbers of 1 to `largest`, no two the same, of which just three make what is asked for.

    They are named from the least on, so that there is one right text of every stage.
    """
    numbers = rng.sample(range(1, largest + 1), _NUMBERS)
    threes = list(combinations(sorted(numbers), 3))
    totals = Counter(map(sum, threes))
    three = rng.choice([one for one in threes if totals[sum(one)] == 1])
    least, middle, most = three
    total = sum(three)
    listed = ", ".join(map(str, numbers))
    return Question(
        text=f"Numbers: {listed}. Which three make {total}, least first?",
        category="hunt",
        plan=f"I will find three that make {total}.",
        caption="There is no image.",
        reasoning=f"{least}: {total} minus {least} is {total - least}. "
        f"{middle}: {total - least} minus {middle} is {most}. {most}.",
        answer=_named(three),
        wrong=tuple(_named(other) for other in threes if other != three),
    )


def _named(three: tuple[int, ...]) -> str:
    return ", ".join(map(str, three))
