"""What the sources that lie in files share: opening them, cutting them up, telling them apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import TypeVar

from stagebeam.data.sources.span import Span
from stagebeam.source_config import LlavaCotSource, LlavaInstructSource, Source, TsvSource

FileSource = TypeVar("FileSource", LlavaCotSource, LlavaInstructSource, TsvSource)


def open_binary(path: Path, what: str) -> BufferedReader:
    """The file, to read; raises ValueError if it cannot be."""
    try:
        return path.open("rb")
    except OSError as error:
        reason = error.strerror or "it cannot be read"
        raise ValueError(f"Cannot open the {what} {path}: {reason}.") from None


def with_absolute(source: FileSource, *names: str) -> FileSource:
    """The source with these paths absolute."""
    return source.model_copy(update={name: getattr(source, name).absolute() for name in names})


def cut(
    source: FileSource,
    offsets: Iterable[int],
    rows: int | None,
    start: int,
) -> Iterator[Span[FileSource]]:
    """Stretches of at most `rows` rows; `offsets` are where all rows begin, `start` the first.

    With `rows` None it is one stretch, and `offsets` is not read.
    """
    if rows is None:
        yield Span(source, 0, source.limit, offset=start)
        return
    first = 0
    limited = islice(offsets, source.limit)
    while some := list(islice(limited, rows)):
        yield Span(source, first, len(some), offset=some[0])
        first += len(some)


def digest(source: Source, file: BufferedReader) -> str:
    """Changes with the settings and with the file's content."""
    return hash_of(source, hashlib.file_digest(file, "sha256").hexdigest())


def stamps(source: Source, files: Iterable[Path]) -> str:
    """Changes with the settings and with the files' names, sizes and times of change."""
    found = ((file, file.stat()) for file in files)
    return hash_of(source, *(f"{file}:{s.st_size}:{s.st_mtime_ns}" for file, s in found))


def hash_of(source: Source, *content: str) -> str:
    """Changes with the settings and with any of these texts."""
    return hashlib.sha256("\n".join((source.model_dump_json(), *content)).encode()).hexdigest()
