"""MMMU (Yue et al., arXiv 2311.16502), by the rules of its published evaluation.

One departure: where a multiple-choice reply names no option, the original draws one at random; here
it names none, and is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

_OUTER = ",.!?;:'"
_LONG = 5  # words; a longer reply is searched for the options' texts
_TELLING = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 12,000
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # 1.2e-5
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),  # 12, 1.2, .5
)


def mmmu_choice(reply: str, choices: Mapping[str, str]) -> str | None:
    """The option that is named last: as `(B)`, else as a word, else, in a reply of more than five
    words, by its text."""
    for mark in _OUTER:
        reply = reply.strip(mark)
    reply = f" {reply} "
    for form in ("({})", " {} "):
        found = _last(reply, choices, form.format)
        if found is not None:
            return found
    if len(reply.split()) <= _LONG:
        return None
    return _last(reply.lower(), choices, lambda letter: choices[letter].lower())


def _last(reply: str, choices: Iterable[str], written: Callable[[str], str]) -> str | None:
    places = {letter: reply.rfind(written(letter)) for letter in choices}
    found = [letter for letter, place in places.items() if place >= 0]
    return max(found, key=places.__getitem__, default=None)


def mmmu_open(reply: str, answers: Iterable[str]) -> bool:
    """Whether what the reply comes to, line by line, holds one of `answers`, or one of its numbers
    equals one (to two digits behind the point)."""
    texts, numbers = _said(reply)
    for answer in answers:
        for right in _alike(answer):
            if right in numbers if isinstance(right, float) else any(right in t for t in texts):
                return True
    return False


def _said(reply: str) -> tuple[set[str], set[float]]:
    parts = _conclusions(reply)
    parts += [number for part in parts for form in _NUMBERS for number in form.findall(part)]
    said = [alike for part in parts for alike in _alike(part)]
    return {s for s in said if isinstance(s, str)}, {s for s in said if isinstance(s, float)}


def _conclusions(reply: str) -> list[str]:
    """Of each line the shortest rest behind a word that announces an answer; the whole reply where
    there is none. In the last line an equals sign announces one too."""
    reply = reply.strip().strip(".").lower()
    lines = reply.split("\n")
    found = []
    for number, line in enumerate(lines, 1):
        signs = (*_TELLING, "=") if number == len(lines) else _TELLING
        rests = [line.rsplit(sign, 1)[1].strip() for sign in signs if sign in line]
        rest = min(rests, key=len, default="")
        if rest and rest not in _OUTER:
            found.append(rest)
    return found or [reply]


def _alike(text: str) -> list[str] | list[float]:
    """A number rounded; else the text in lower case, a single letter with a space on either side,
    so that it is not found within words."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]
