"""ChartQA's relaxed accuracy (Masry et al., arXiv 2203.10244, end of section 5.1).

A number may be off by 5 % of the right one; anything else must be the same text. Percentages are
read as the pix2struct evaluation and VLMEvalKit read them: `12%` is 0.12.
"""

from __future__ import annotations

from collections.abc import Iterable

TOLERANCE = 0.05  # of the right value


def relaxed_match(said: str, answers: Iterable[str]) -> bool:
    """Whether `said` is one of `answers`."""
    return any(_same(said.strip(), answer) for answer in answers)


def _same(said: str, answer: str) -> bool:
    value, right = _number(said), _number(answer)
    if value is not None and right:  # around 0 there is no share to be off by
        return abs(value - right) / abs(right) <= TOLERANCE
    return said.lower() == answer.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
