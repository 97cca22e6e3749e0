"""What a free reply says: the rules that VLMEvalKit (github.com/open-compass/VLMEvalKit) applies to
multiple choice, yes or no, HallusionBench and MathVista, in `compat` and in `strict` mode.

Nothing is evaluated as code and nothing is guessed: what matches no rule is None.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from statistics import fmean
from string import ascii_uppercase
from typing import Any, NamedTuple

from stagebeam.evaluation.scorers.conclusion import Mode, conclusion_of
from stagebeam.evaluation.scorers.listed import listed
from stagebeam.evaluation.scorers.punctuation import without_punctuation
from stagebeam.search.votes import normalise

NO_ANSWER = "Z"  # the reply refuses, or says itself that none fits

API_FAILURE = "Failed to obtain answer via API"
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_TO_SPACES = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST_WORDS = 4  # a lone letter counts among these only
# Nothing need follow the letter: of "the answer is blue" this takes B, as the original does.
_ANSWER_IS = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)
_LETTER = re.compile(r"\(([a-z])\)|([a-z])\)?")  # once normalised


def match_choice(reply: str, choices: Mapping[str, str], mode: Mode) -> str | None:
    """The letter of the option that `reply` chooses, "Z" for a refusal (`compat` only), or None.

    `choices` are the options' texts by their letters. In `compat`, the first of these that applies:
    a refusal; a single option's letter among the last four words; no letter but Z; "answer is" and
    a letter up to D; a single option's text in a reply at most twice as long as all texts. In
    `strict`, the conclusion is a letter (`B`, `B.`, `(B)`, `B)`) or the text of a single option.
    """
    if mode == "strict":
        return _strict_choice(reply, choices)
    return _named(reply, choices) or _quoted(reply, choices)


def _named(reply: str, choices: Mapping[str, str]) -> str | None:
    """By a letter."""
    if API_FAILURE in reply:
        return None
    if any(refusal in reply for refusal in REFUSALS):
        return NO_ANSWER
    words = reply.translate(_TO_SPACES).split()
    letters = [letter for letter in choices if letter in words]
    if len(letters) == 1 and words.index(letters[0]) >= len(words) - _LAST_WORDS:
        return letters[0]
    if not letters and NO_ANSWER in words:
        return NO_ANSWER
    found = _ANSWER_IS.search(reply)
    letter = found[1].upper() if found else None
    return letter if letter in choices else None


def _quoted(reply: str, choices: Mapping[str, str]) -> str | None:
    """By an option's text."""
    said = reply.lower()
    if len(said) > 2 * sum(len(str(text)) for text in choices.values()):
        return None
    found = [letter for letter, text in choices.items() if str(text).lower() in said]
    return found[0] if len(found) == 1 else None


def _strict_choice(reply: str, choices: Mapping[str, str]) -> str | None:
    said = normalise(conclusion_of(reply) or "")
    if (letter := letter_of(said, choices)) is not None:
        return letter
    found = [name for name, text in choices.items() if said and normalise(str(text)) == said]
    return found[0] if len(found) == 1 else None


def letter_of(text: str, choices: Collection[str]) -> str | None:
    """The letter that is all that the normalised `text` says, if it is one of `choices`."""
    found = _LETTER.fullmatch(text)
    letter = (found[1] or found[2]).upper() if found else None
    return letter if letter in choices else None


def match_yes_no(reply: str, mode: Mode = "compat") -> str:
    """ "Yes" or "No" if one of the two is a word of the reply (`strict`: of its conclusion) and the
    other is not, else "Unknown"."""
    said = reply if mode == "compat" else conclusion_of(reply) or ""
    words = without_punctuation(said.lower()).split()
    found = [name for name in ("Yes", "No") if name.lower() in words]
    return found[0] if len(found) == 1 else "Unknown"


def hallusionbench_scores(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """HallusionBench's three accuracies in percent: overall, by category and by l2-category.

    A row has `index` (parts 3, 4 and 5 between its underscores are set, figure and question),
    `score` (0 or 1), and `category` and `l2-category` if it is to count there. aAcc is over rows;
    fAcc and qAcc over figures and over questions of a set, each right if all of its rows are.

    Raises ValueError if there is no row, or an index has not its parts.
    """
    scored = list(rows)
    if not scored:
        raise ValueError("HallusionBench without a row has no score.")
    splits: dict[str, list[Mapping[str, Any]]] = defaultdict(list, {"Overall": scored})
    for column in ("category", "l2-category"):
        for row in scored:
            if row.get(column):
                splits[row[column]].append(row)
    return {name: _accuracies(split) for name, split in splits.items()}


def _accuracies(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {
        "aAcc": fmean(bool(row["score"]) for row in rows) * 100,
        "fAcc": _all_right(rows, lambda row: _place(row, 4)),
        "qAcc": _all_right(rows, lambda row: _place(row, 5)),
    }


def _place(row: Mapping[str, Any], part: int) -> Hashable:
    """The l2-category, the set, and the figure or the question."""
    parts = str(row["index"]).split("_")
    if len(parts) < 6:
        raise ValueError(f"The index {row['index']!r} names no set, figure and question.")
    return row.get("l2-category"), parts[3], parts[part]


def _all_right(
    rows: Iterable[Mapping[str, Any]], group_of: Callable[[Mapping[str, Any]], Hashable]
) -> float:
    groups: dict[Hashable, bool] = {}
    for row in rows:
        group = group_of(row)
        groups[group] = groups.get(group, True) and bool(row["score"])
    return fmean(groups.values()) * 100


class MathVistaMatch(NamedTuple):
    """What is read off a reply without a judge, None where nothing is, and whether it is right."""

    prefetched: str | int | float | None
    hit: bool


def match_mathvista(row: Mapping[str, Any], mode: Mode) -> MathVistaMatch:
    """MathVista's rule for a row of `question_type`, `answer_type`, `answer`, `answer_option`,
    `choices` (a list, or one as Python writes it) and `prediction`.

    In `compat`, `res` is what a judge extracted, and the hit is told by that: options by
    `match_choice`, `integer` and `float` by what Python reads in the whole of it, a free text never
    (the original compares it with nothing). From the prediction a choice is prefetched whatever it
    is, a number only if it is right. In `strict` the conclusion alone counts, for both.

    Raises ValueError if a multiple-choice row has no list of choices.
    """
    if mode == "strict":
        value = _strict_value(row)
        return MathVistaMatch(value, value is not None and value == _gold(row, normalise))
    if row["question_type"] == "multi_choice":
        options = _options(row)
        found = match_choice(str(row["res"]), options, mode)
        hit = found is not None and found == row["answer_option"]
        return MathVistaMatch(match_choice(str(row["prediction"]), options, mode), hit)
    value, gold = _number(row, row["prediction"]), _gold(row, str)
    if row["answer_type"] not in _NUMBERS:
        # "None" is what the original compares with: of all free texts it alone can be right.
        return MathVistaMatch("None" if gold == "None" else None, gold == "None")
    extracted = _number(row, row["res"])
    right = value is not None and value == gold
    return MathVistaMatch(value if right else None, extracted is not None and extracted == gold)


_NUMBERS: dict[str, Callable[[Any], int | float]] = {"integer": int, "float": float}


def _number(row: Mapping[str, Any], text: Any) -> int | float | None:
    """The whole of `text` as a number of the row's type."""
    try:
        return _NUMBERS[row["answer_type"]](text)
    except (KeyError, ValueError, TypeError):
        return None


def _gold(row: Mapping[str, Any], free: Callable[[str], str]) -> str | int | float | None:
    if row["question_type"] == "multi_choice":
        return str(row["answer_option"])
    if row["answer_type"] in _NUMBERS:
        return _number(row, row["answer"])
    return free(str(row["answer"]))


def _strict_value(row: Mapping[str, Any]) -> str | int | float | None:
    if row["question_type"] == "multi_choice":
        return match_choice(str(row["prediction"]), _options(row), "strict")
    said = conclusion_of(str(row["prediction"]))
    if said is None:
        return None
    return _number(row, said) if row["answer_type"] in _NUMBERS else normalise(said) or None


def _options(row: Mapping[str, Any]) -> dict[str, str]:
    """Texts by letter."""
    choices = row["choices"]
    texts = listed(choices) if isinstance(choices, str) else choices
    if not isinstance(texts, list | tuple):
        raise ValueError(f"The choices of a MathVista row are not a list: {choices!r}.")
    return dict(zip(ascii_uppercase, map(str, texts), strict=False))
