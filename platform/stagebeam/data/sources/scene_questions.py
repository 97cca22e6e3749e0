"""Questions about drawn scenes, with the gold text of each stage computed from the scene."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

LETTERS = "ABCD"


@dataclass(frozen=True, slots=True)
class Thing:
    """A coloured shape in one of nine cells, numbered in reading order."""

    colour: str
    kind: str
    cell: int

    def __str__(self) -> str:
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the gold body of each stage; `answer` is the conclusion."""

    text: str
    category: str
    plan: str
    caption: str
    reasoning: str
    answer: str
    wrong: tuple[str, ...]  # plausible other answers, for multiple choice
    choices: tuple[str, ...] = ()


def with_options(rng: random.Random, question: Question) -> Question:
    """The question as multiple choice; the answer becomes a letter.

    The letter follows its option, so that naming it is reading on from the answer: a small model
    learns that early, and looking up what stands in front of a value very late.
    """
    pool = sorted(set(question.wrong) - {question.answer})
    options = [question.answer, *rng.sample(pool, min(3, len(pool)))]
    rng.shuffle(options)
    letter = LETTERS[options.index(question.answer)]
    listed = ", ".join(f"{text} ({mark})" for mark, text in zip(LETTERS, options, strict=False))
    return replace(
        question,
        text=f"{question.text} Options: {listed}.",
        plan=f"{question.plan} Then I will pick the option.",
        reasoning=f"{question.reasoning} So {question.answer} ({letter}).",
        answer=letter,
        choices=tuple(options),
    )


def about_shapes(
    rng: random.Random, things: Sequence[Thing], colours: Sequence[str], kinds: Sequence[str]
) -> Iterator[Question]:
    """Endless questions about one scene of shapes."""
    caption = f"Shapes: {_listed(things)}."
    makers = (_count, _compare, _remove, _add, _attribute)
    while True:
        question = rng.choice(makers)(rng, things, colours, kinds)
        if question is not None:
            yield replace(question, caption=caption)


def _count(
    rng: random.Random, things: Sequence[Thing], colours: Sequence[str], kinds: Sequence[str]
) -> Question:
    name, members = _group(rng, things, colours, kinds)
    return Question(
        text=f"How many {name} are there?",
        category="counting",
        plan=f"I will count the {name}.",
        caption="",
        reasoning=f"{_tally(name, members)}.",
        answer=str(len(members)),
        wrong=_near(len(members)),
    )


def _compare(
    rng: random.Random, things: Sequence[Thing], colours: Sequence[str], kinds: Sequence[str]
) -> Question:
    first, second = rng.sample(list(kinds), 2)
    names = [_plural(first), _plural(second)]
    groups = [[t for t in things if t.kind == kind] for kind in (first, second)]
    more = len(groups[0]) > len(groups[1])
    verdict = "more than" if more else "not more than"
    return Question(
        text=f"Are there more {names[0]} than {names[1]}?",
        category="comparison",
        plan=f"I will count the {names[0]} and the {names[1]}.",
        caption="",
        reasoning=f"{_tally(names[0], groups[0])}. {_tally(names[1], groups[1])}. "
        f"{len(groups[0])} is {verdict} {len(groups[1])}.",
        answer="yes" if more else "no",
        wrong=("no" if more else "yes",),
    )


def _remove(
    rng: random.Random, things: Sequence[Thing], colours: Sequence[str], kinds: Sequence[str]
) -> Question:
    name, members = _group(rng, things, colours, kinds)
    left = [t for t in things if t not in members]
    return Question(
        text=f"If all {name} are removed, how many shapes are left?",
        category="arithmetic",
        plan=f"I will count the shapes that are left without the {name}.",
        caption="",
        reasoning=f"{_tally('shapes left', left)}.",
        answer=str(len(left)),
        wrong=_near(len(left)),
    )


def _add(
    rng: random.Random, things: Sequence[Thing], colours: Sequence[str], kinds: Sequence[str]
) -> Question:
    name, members = _group(rng, things, colours, kinds)
    extra = rng.randint(1, 4)
    total = len(members) + extra
    return Question(
        text=f"If {extra} more {name} are added, how many {name} are there?",
        category="arithmetic",
        plan=f"I will count the {name} and add {extra}.",
        caption="",
        reasoning=f"{_tally(name, members)}. {len(members)} plus {extra} is {total}.",
        answer=str(total),
        wrong=_near(total),
    )


def _attribute(
    rng: random.Random, things: Sequence[Thing], colours: Sequence[str], kinds: Sequence[str]
) -> Question | None:
    """Asks for what a single thing of its kind or colour looks like; None where none is single."""
    by_kind = rng.random() < 0.5
    single = [
        t
        for t in things
        if sum(o.kind == t.kind if by_kind else o.colour == t.colour for o in things) == 1
    ]
    if not single:
        return None
    thing = rng.choice(single)
    if by_kind:
        text, plan = f"What colour is the {thing.kind}?", f"I will find the {thing.kind}."
        answer, others = thing.colour, colours
    else:
        text = f"What is the {thing.colour} shape?"
        plan, answer, others = f"I will find the {thing.colour} shape.", thing.kind, kinds
    return Question(
        text=text,
        category="attribute",
        plan=plan,
        caption="",
        reasoning=f"There is a {thing}.",
        answer=answer,
        wrong=tuple(o for o in others if o != answer),
    )


def about_bars(rng: random.Random, bars: dict[str, int]) -> Iterator[Question]:
    """Endless questions about one bar chart (colour -> height)."""
    caption = f"Bars: {', '.join(f'{colour} {height}' for colour, height in bars.items())}."
    while True:
        yield replace(rng.choice((_extreme, _sum, _difference))(rng, bars), caption=caption)


def _extreme(rng: random.Random, bars: dict[str, int]) -> Question:
    word, pick = rng.choice((("highest", max), ("lowest", min)))
    height = pick(bars.values())
    colour = next(c for c, h in bars.items() if h == height)
    return Question(
        text=f"Which bar is the {word}?",
        category="chart",
        plan=f"I will find the {word} bar.",
        caption="",
        reasoning=f"The {word} is {height} and it is {colour}.",
        answer=colour,
        wrong=tuple(c for c in bars if c != colour),
    )


def _sum(rng: random.Random, bars: dict[str, int]) -> Question:
    a, b = rng.sample(sorted(bars), 2)
    total = bars[a] + bars[b]
    return Question(
        text=f"What is {a} plus {b}?",
        category="chart",
        plan=f"I will add {a} and {b}.",
        caption="",
        reasoning=f"{a} is {bars[a]}. {b} is {bars[b]}. {bars[a]} plus {bars[b]} is {total}.",
        answer=str(total),
        wrong=_near(total),
    )


def _difference(rng: random.Random, bars: dict[str, int]) -> Question:
    a, b = sorted(rng.sample(sorted(bars), 2), key=lambda colour: -bars[colour])
    gap = bars[a] - bars[b]
    return Question(
        text=f"How much higher is {a} than {b}?",
        category="chart",
        plan=f"I will subtract {b} from {a}.",
        caption="",
        reasoning=f"{a} is {bars[a]}. {b} is {bars[b]}. {bars[a]} minus {bars[b]} is {gap}.",
        answer=str(gap),
        wrong=_near(gap),
    )


def about_numbers(rng: random.Random, largest: int) -> Iterator[Question]:
    """Endless text-only questions; there is no image to look at."""
    while True:
        a, b = rng.randint(1, largest), rng.randint(1, largest)
        if rng.random() < 0.5:
            word, verb, result = "plus", "add", a + b
        else:
            a, b = max(a, b), min(a, b)
            word, verb, result = "minus", "subtract", a - b
        yield Question(
            text=f"What is {a} {word} {b}?",
            category="text",
            plan=f"I will {verb} the numbers.",
            caption="There is no image.",
            reasoning=f"{a} {word} {b} is {result}.",
            answer=str(result),
            wrong=_near(result),
        )


def _group(
    rng: random.Random, things: Sequence[Thing], colours: Sequence[str], kinds: Sequence[str]
) -> tuple[str, list[Thing]]:
    """A nameable group, by colour or by kind, that more often than not has members."""
    by_colour = rng.random() < 0.5
    present = {t.colour if by_colour else t.kind for t in things}
    every = colours if by_colour else kinds
    word = rng.choice(sorted(present)) if rng.random() < 0.85 else rng.choice(list(every))
    if by_colour:
        return f"{word} shapes", [t for t in things if t.colour == word]
    return _plural(word), [t for t in things if t.kind == word]


def _tally(name: str, members: Sequence[Thing]) -> str:
    return f"{name}: {_listed(members) if members else 'none'}. That is {len(members)}"


def _listed(things: Sequence[Thing]) -> str:
    return ", ".join(map(str, things))


def _near(number: int) -> tuple[str, ...]:
    """Numbers that a slip would give."""
    return tuple(str(n) for n in range(max(0, number - 3), number + 4) if n != number)


def _plural(kind: str) -> str:
    return f"{kind}es" if kind.endswith("s") else f"{kind}s"
