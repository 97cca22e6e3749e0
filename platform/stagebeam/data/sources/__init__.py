"""Where examples come from: each source of a recipe is read lazily, whole or by stretches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

from stagebeam.data.refusal import Refused
from stagebeam.data.sources import (
    huggingface,
    llava_cot,
    llava_instruct,
    scenes,
    tsv,
    webdataset,
)
from stagebeam.data.sources.span import Span
from stagebeam.records import Example
from stagebeam.source_config import Source

__all__ = ["Span", "absolute", "fingerprint", "read", "read_span", "spans"]

S = TypeVar("S", bound=Source)


class Reader(Protocol[S]):
    """What the module of a source has. Each raises ValueError if the source is not there."""

    def spans(self, source: S, rows: int | None) -> Iterator[Span[S]]:
        """Stretches of at most `rows` rows that are the source, in order; one, if that is None.

        Where only reading tells how many rows a file has, a stretch is a file.
        """
        ...

    def read_span(self, span: Span[S]) -> Iterator[Example | Refused]:
        """The rows of one stretch, each that is not of the form as its refusal."""
        ...

    def fingerprint(self, source: S) -> str:
        """Changes with the settings and the content of the annotations."""
        ...

    def absolute(self, source: S) -> S:
        """The source with absolute paths."""
        ...


_READERS: dict[str, Reader[Any]] = {
    "scenes": scenes,
    "llava_cot": llava_cot,
    "llava_instruct": llava_instruct,
    "huggingface": huggingface,
    "webdataset": webdataset,
    "tsv": tsv,
}


def read(source: Source) -> Iterator[Example | Refused]:
    """Every row of a source, in order. Raises ValueError if the source itself is not there."""
    reader = _READERS[source.kind]
    for span in reader.spans(source, None):
        yield from reader.read_span(span)


def spans(source: Source, rows: int) -> Iterator[Span[Any]]:
    """Stretches of at most `rows` rows, or of one file, that together are the source, in order.

    Another machine that has the same files can read them if the source is `absolute`. Raises
    ValueError if the source itself is not there.
    """
    return _READERS[source.kind].spans(source, rows)


def read_span(span: Span[Any]) -> Iterator[Example | Refused]:
    """The rows of one stretch, in order."""
    return _READERS[span.source.kind].read_span(span)


def fingerprint(source: Source) -> str:
    """Changes with the source's settings and with the content of its annotations.

    Of tar files and of folders of data files the names, sizes and times of change stand for the
    content, of a data set on the hub its commit. Raises ValueError if the source is not there.
    """
    return _READERS[source.kind].fingerprint(source)


def absolute(source: Source) -> Source:
    """The source with every path absolute, for workers that run in another folder."""
    made: Source = _READERS[source.kind].absolute(source)
    return made
