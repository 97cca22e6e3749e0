"""DocVQA's ANLS, average normalised Levenshtein similarity (Biten et al., arXiv 1905.13648)."""

from __future__ import annotations

from collections.abc import Sequence

THRESHOLD = 0.5  # less alike than this counts nothing


def anls(said: str, answers: Sequence[str]) -> float:
    """From 0 to 1: how alike `said` and the closest of `answers` are, letter by letter. Case and
    the amount of white space do not count."""
    alike = max(_alike(_plain(said), _plain(answer)) for answer in answers)
    return alike if alike >= THRESHOLD else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _alike(a: str, b: str) -> float:
    longest = max(len(a), len(b))
    return 1 - edits(a, b) / longest if longest else 1.0


def edits(a: str, b: str) -> int:
    """The fewest insertions, deletions and replacements of a letter that make `a` into `b`."""
    row = list(range(len(b) + 1))  # from nothing to each beginning of b
    for i, letter in enumerate(a, 1):
        above, row = row, [i]
        for j, other in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (letter != other)))
    return row[-1]
