"""A stretch of a source that one worker reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from stagebeam.source_config import Source

S = TypeVar("S", bound=Source)


@dataclass(frozen=True, slots=True)
class Span(Generic[S]):
    """`rows` rows from number `first` (from 0) on; None where only reading tells how many.

    `file` and `offset` say where the first row begins, in bytes, where the source has several
    files or rows of unequal length. Without a `file` a source of several is read from its first.
    """

    source: S
    first: int
    rows: int | None
    file: str = ""
    offset: int = 0
