"""Whether a conclusion is right: strict and small, never guessing. No match is wrong.

This is the `strict` rule of the platform: it reads the conclusion alone. The looser rules that
published benchmark figures rest on are another matter and live elsewhere.
"""

from __future__ import annotations

import re
import string

from stagebeam.records import Example
from stagebeam.search.votes import normalise

_LETTER = re.compile(r"\(([a-z])\)|([a-z])\)?")  # once normalised


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
    gold = _option(example) if example.choices else None
    if conclusion is None:
        return False
    said = normalise(conclusion)
    if gold is None:
        return said == normalise(example.answer)
    letter = _letter(said, len(example.choices))
    if letter is not None:
        return letter == gold
    texts = [normalise(choice) for choice in example.choices]
    return bool(said) and texts.count(said) == 1 and texts.index(said) == gold


def _option(example: Example) -> int:
    """Index of the right option."""
    index = _letter(normalise(example.answer or ""), len(example.choices))
    if index is None:
        last = string.ascii_uppercase[len(example.choices) - 1]
        raise ValueError(
            f"Example {example.id} is multiple choice, so its answer must be a letter"
            f" A to {last}, not {example.answer!r}."
        )
    return index


def _letter(text: str, options: int) -> int | None:
    """Index of the option that a normalised text names by its letter, else None."""
    found = _LETTER.fullmatch(text)
    if found is None:
        return None
    index = string.ascii_lowercase.index(found[1] or found[2])
    return index if index < options else None
