"""Counting conclusions that say the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from stagebeam.inference.types import Candidate
from stagebeam.stages import conclusion


def normalise(text: str) -> str:
    """Case, outer white space and final punctuation dropped: `" Two. "` and `"two"` agree."""
    return text.casefold().strip().rstrip(".,;:!?").rstrip()


def ballots(candidates: tuple[Candidate, ...]) -> dict[int, str]:
    """The normalised conclusion of each candidate that has a whole one, by index."""
    found = {c.index: conclusion(c.text) for c in candidates}
    return {index: normalise(body) for index, body in found.items() if body is not None}


def support(ballots: Mapping[int, str]) -> dict[int, int]:
    """How many ballots agree with each one, itself included."""
    counts = Counter(ballots.values())
    return {index: counts[ballot] for index, ballot in ballots.items()}
