"""What a benchmark is: a public file, how a row is asked, how a reply is scored, how scores add up.

Files are the TSVs that VLMEvalKit publishes (github.com/open-compass/VLMEvalKit), images in base64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Literal

from stagebeam.data.sources.tsv import read_table
from stagebeam.evaluation.scorers.conclusion import Mode, Outcome


@dataclass(frozen=True, slots=True)
class Row:
    """A question: its cells as text by column, and its images."""

    index: str
    cells: Mapping[str, str]
    images: tuple[bytes, ...] = ()

    @property
    def choices(self) -> dict[str, str]:
        """Texts by letter, as far as the row has them."""
        cells = {letter: self.cells.get(letter, "").strip() for letter in ascii_uppercase}
        return {letter: text for letter, text in cells.items() if text}


@dataclass(frozen=True, slots=True)
class Scored:
    """A row and the outcome of its reply."""

    row: Row
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Figure:
    """A score in percent, the mean of `count` questions (or groups of them) that count alike, and
    its 95 % bootstrap interval, None where it is no such mean."""

    percent: float
    count: int
    interval: tuple[float, float] | None = None


Figures = Mapping[str, Figure]  # "Overall" first
Scorer = Callable[[Row, str, Mode], Outcome]
# What a judge model does: score an answer beside a reference, grade it, find the short answer.
ReviewKind = Literal["pair", "grade", "extract"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A declaration. `score` is None where nothing but a judge model can tell what a reply is
    worth; `review` says how a judge does, if one is there."""

    name: str
    file: str
    md5: str | None = None  # of the published file, where it is known for certain
    needed: tuple[str, ...] = ("answer",)  # columns beside index, image and question
    prompt: Callable[[Row], str]
    score: Scorer | None
    review: ReviewKind | None = None
    figures: Callable[[Sequence[Scored]], Figures]

    def rows(self, folder: Path) -> Iterator[Row]:
        """The questions in `folder`'s file. Raises ValueError as `read_table` does, and for a row
        without an index or a question."""
        path = folder / self.file
        columns = ("index", "image", "question", *self.needed)
        for number, (cells, images) in enumerate(read_table(path, columns), start=1):
            for column in ("index", "question"):
                if not cells[column].strip():
                    raise ValueError(f"{path}, row {number}: The row has no {column}.")
            yield Row(cells["index"].strip(), cells, tuple(images))

    def published(self, folder: Path) -> bool | None:
        """Whether `folder` holds the very file that was published; None where that is not known."""
        if self.md5 is None:
            return None
        with (folder / self.file).open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest() == self.md5
