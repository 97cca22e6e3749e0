"""Whether a conclusion is right: strict and small, never guessing. No match is wrong.

This is the `strict` rule of the platform: it reads the conclusion alone. The looser rules that
published benchmark figures rest on are in `matching` and `scorers`.
"""

from __future__ import annotations

import string
from collections.abc import Mapping

from stagebeam.evaluation.matching import letter_of, match_choice
from stagebeam.records import Example
from stagebeam.search.votes import normalise


def correct(conclusion: str | None, example: Example) -> bool:
    """Whether `conclusion` is the example's gold answer.

    Case, outer white space and final punctuation are ignored. Where the example has choices, its
    answer is the letter of the right one; the conclusion may be that letter (`B`, `B.`, `(B)`,
    `B)`) or exactly the text of the right option, if no other option has the same text. A letter
    that names an option is read as that letter, even where an option's text is a letter too.

    Raises ValueError if the example has no gold answer, or one that names none of its choices.
    """
    if example.answer is None or not normalise(example.answer):
        raise ValueError(f"Example {example.id} has no gold answer to score against.")
    options = _options(example)
    gold = _gold_letter(example, options) if options else normalise(example.answer)
    return read(conclusion, example) == gold


def read(conclusion: str | None, example: Example) -> str | None:
    """What is scored of `conclusion`: the letter of the option that it names, or without choices
    its normalised text. None where it names no option or says nothing."""
    if conclusion is None:
        return None
    if options := _options(example):
        letter = match_choice(conclusion, options, "strict")
        return letter if letter in options else None
    return normalise(conclusion) or None


def _options(example: Example) -> dict[str, str]:
    return dict(zip(string.ascii_uppercase, example.choices, strict=False))


def _gold_letter(example: Example, options: Mapping[str, str]) -> str:
    letter = letter_of(normalise(example.answer or ""), options)
    if letter is None:
        raise ValueError(
            f"Example {example.id} is multiple choice, so its answer must be a letter"
            f" A to {list(options)[-1]}, not {example.answer!r}."
        )
    return letter
