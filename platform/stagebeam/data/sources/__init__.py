"""Where examples come from: each source of a recipe is read lazily, whole or by stretches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from stagebeam.data.sources import llava_cot, scenes
from stagebeam.data.validate import Refused
from stagebeam.recipe import LlavaCotSource, ScenesSource, Source
from stagebeam.records import Example


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a source that one worker reads: `rows` rows from number `first` (from 0) on.

    `offset` is where the first row begins in the source's file, in bytes.
    """

    source: Source
    first: int
    rows: int
    offset: int = 0


def read(source: Source) -> Iterator[Example | Refused]:
    """Every row of a source, in order. Raises ValueError if the source itself is not there."""
    match source:
        case ScenesSource():
            yield from scenes.draw(source)
        case LlavaCotSource():
            yield from llava_cot.read(source)


def spans(source: Source, rows: int) -> Iterator[Span]:
    """Stretches of at most `rows` rows that together are the source, in order.

    Raises ValueError if the source itself is not there.
    """
    match source:
        case ScenesSource():
            for first in range(0, source.rows, rows):
                yield Span(source, first, min(rows, source.rows - first))
        case LlavaCotSource():
            for first, count, offset in llava_cot.spans(source, rows):
                yield Span(source, first, count, offset)


def read_span(span: Span) -> Iterator[Example | Refused]:
    """The rows of one stretch."""
    match span.source:
        case ScenesSource():
            yield from scenes.draw_range(span.source, span.first, span.first + span.rows)
        case LlavaCotSource():
            yield from llava_cot.read_lines(span.source, span.first, span.rows, span.offset)


def fingerprint(source: Source) -> str:
    """Changes with the source's settings and, for annotations in a file, with their content.

    Raises ValueError if the source itself is not there.
    """
    text = source.model_dump_json()
    if isinstance(source, LlavaCotSource):
        with llava_cot.open_annotations(source) as file:
            text += hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(text.encode()).hexdigest()
