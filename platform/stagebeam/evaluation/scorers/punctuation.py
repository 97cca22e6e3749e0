"""How the public evaluation of VQA (Antol et al., arXiv 1505.00468) drops punctuation."""

from __future__ import annotations

import re

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the original passes a flag, which is 32, where the count belongs


def without_punctuation(text: str) -> str:
    """Each mark is dropped where it stands beside a space anywhere in the text, and becomes a space
    where it does not; all are dropped if a number has a comma in it. Periods go, unless a digit
    follows. Other marks, such as `:` and `*`, stay."""
    number = _COMMA_IN_NUMBER.search(text) is not None
    kept = text
    for mark in _MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if beside_space or number else " ")
    return _PERIOD.sub("", kept, count=_MOST_PERIODS)
