"""Questions with gold answers, with or without options, as turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from stagebeam.data.sources.row import RowError, text_of
from stagebeam.data.sources.turns import messages, without_placeholders
from stagebeam.records import Example, Image, Message


def example(
    fields: Mapping[str, Any], *, id: str, images: tuple[Image, ...], source: str, split: str
) -> Example:
    """An example of the fields `conversations`, or `question` and `answer`.

    `choices` and `category` may be there or None, and `answer` beside `conversations`.
    """
    choices = _choices(fields.get("choices"))
    given = fields.get("answer")
    answer = None if given is None else _gold(given, choices)
    if fields.get("conversations") is not None:
        turns = messages(fields)
    elif answer is None:
        raise RowError("The row has no 'answer'.")
    else:
        asked = prompt(text_of(fields, "question"), choices)
        turns = (Message("user", asked), Message("assistant", answer))
    category = fields.get("category")
    return Example(
        id=id,
        images=images,
        messages=without_placeholders(turns, len(images), needed=False),
        source=source,
        split=split,
        answer=answer,
        category=None if category is None else str(category),
        choices=choices,
    )


def prompt(question: str, choices: Sequence[str], hint: str = "") -> str:
    """The hint, the question and the options `A. ...`, a line each."""
    options = (f"{letter}. {text}" for letter, text in zip(ascii_uppercase, choices, strict=False))
    return "\n".join(line for line in (hint, question, *options) if line)


def _choices(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(_plain(choice) for choice in value):
        raise RowError("The row has 'choices' that are not a list of texts.")
    if len(value) > len(ascii_uppercase):
        raise RowError(f"The row has {len(value)} choices, more than there are letters.")
    return tuple(map(str, value))


def _plain(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _gold(answer: object, choices: tuple[str, ...]) -> str:
    """The answer as text; with choices its letter, given by letter, index from 0, or text."""
    if not _plain(answer):
        raise RowError("The row has an 'answer' that is neither text nor a number.")
    text = str(answer)
    if not choices:
        return text
    letters = ascii_uppercase[: len(choices)]
    letter = text.strip().upper()
    if len(letter) == 1 and letter in letters:
        return letter
    named = {choices.index(text)} if isinstance(answer, str) and text in choices else set()
    if text.strip().isdecimal() and int(text) < len(choices):
        named.add(int(text))
    if not named:
        raise RowError(f"The answer {text[:40]!r} is none of the {len(choices)} choices.")
    if len(named) > 1:
        raise RowError(
            f"The answer {text[:40]!r} is one choice by its text, another by its number."
        )
    return letters[named.pop()]
