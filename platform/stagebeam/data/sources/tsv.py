"""A benchmark's TSV with images in base64, in the form that VLMEvalKit reads.

Columns: index, image, question, answer; hint, the options A, B, ..., category and l2-category
where there are some. An image may be a list of them, or the index of another row whose image it
shares: text of at most 64 characters is such an index.
"""

from __future__ import annotations

import ast
import base64
import binascii
import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from io import BufferedReader
from itertools import islice, takewhile
from pathlib import Path
from string import ascii_uppercase

from stagebeam.data.refusal import Refused
from stagebeam.data.sources.files import cut, digest, open_binary, with_absolute
from stagebeam.data.sources.questions import prompt
from stagebeam.data.sources.row import RowError, refusal
from stagebeam.data.sources.span import Span
from stagebeam.records import Example, Image, Message
from stagebeam.source_config import TsvSource

_COLUMNS = ("index", "image", "question", "answer")
_SHARING = ("index", "image")  # what finding another row's image takes
_LONGEST_INDEX = 64
_MAX_FIELD = 256 << 20  # characters; csv's own limit is less than one photograph


def spans(source: TsvSource, rows: int | None) -> Iterator[Span[TsvSource]]:
    """Stretches of at most `rows` rows; one, if that is None.

    Raises ValueError if the file is not there or lacks a column.
    """
    with open_binary(source.file, "TSV file") as file:
        start = _header(source.file, file)[1]
        offsets = (offset for offset, _ in _records(file, start))
        yield from cut(source, offsets, rows, start)


def read_span(span: Span[TsvSource]) -> Iterator[Example | Refused]:
    """The rows of one stretch."""
    source = span.source
    with open_binary(source.file, "TSV file") as file:
        header, _ = _header(source.file, file)
        records = islice(_records(file, span.offset), span.rows)
        for number, (_, cells) in enumerate(records, start=span.first + 1):
            yield _row(cells, header, f"{source.file.name}:{number}", source)


def read_table(path: Path, needed: Sequence[str]) -> Iterator[tuple[dict[str, str], list[bytes]]]:
    """Every row as text by column, and its images, for readers with columns of their own.

    Raises ValueError if the file is not there or lacks a column of `needed` (`index` and `image`
    among them), and for the first row that cannot be read.
    """
    with open_binary(path, "TSV file") as file:
        header, start = _header(path, file, needed)
        for number, (_, cells) in enumerate(_records(file, start), start=1):
            try:
                fields = _fields(cells, header)
                yield fields, _images(fields["image"].strip(), path)
            except RowError as error:
                raise ValueError(f"{path}, row {number}: {error}") from None


def fingerprint(source: TsvSource) -> str:
    """Changes with the settings and the content of the file; ValueError if it is not there."""
    with open_binary(source.file, "TSV file") as file:
        return digest(source, file)


def absolute(source: TsvSource) -> TsvSource:
    """The source with an absolute path."""
    return with_absolute(source, "file")


class _Lines:
    """The lines of a file as text for `csv`, and where the next one begins."""

    def __init__(self, file: BufferedReader, offset: int) -> None:
        file.seek(offset)
        self._file = file
        self.offset = offset
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline(_MAX_FIELD)
        if not line:
            self.ended = True
            raise StopIteration
        self.offset += len(line)
        return line.decode(errors="surrogateescape")


def _records(file: BufferedReader, offset: int) -> Iterator[tuple[int, list[str] | RowError]]:
    """Where each row begins, and its cells or why it has none; blank lines are left out."""
    csv.field_size_limit(_MAX_FIELD)
    lines = _Lines(file, offset)
    reader = csv.reader(lines, delimiter="\t")
    while True:
        begin = lines.offset
        cells: list[str] | RowError
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cells = RowError(f"The row cannot be read as TSV: {error}.")
        if lines.ended:
            cells = RowError("A quotation mark is not closed before the end of the file.")
        if cells:
            yield begin, cells


def _header(
    path: Path, file: BufferedReader, needed: Sequence[str] = _COLUMNS
) -> tuple[list[str], int]:
    """The names of the columns, and where the first row begins."""
    lines = _Lines(file, 0)
    try:
        header = next(csv.reader(lines, delimiter="\t"), [])
    except csv.Error:  # not a text at all
        header = []
    absent = [name for name in needed if name not in header]
    if absent:
        raise ValueError(f"The TSV file {path} has no column {', '.join(absent)}.")
    return header, lines.offset


def _row(
    cells: list[str] | RowError, header: list[str], place: str, source: TsvSource
) -> Example | Refused:
    name, shown = None, {}
    try:
        fields = _fields(cells, header)
        shown = {column: text for column, text in fields.items() if column != "image"}
        name = f"{source.file.stem}:{_needed(fields, 'index')}"
        return _example(fields, name, source)
    except RowError as error:
        return refusal(error, name, place, json.dumps(shown, ensure_ascii=False) if shown else "")


def _fields(cells: list[str] | RowError, header: list[str]) -> dict[str, str]:
    if isinstance(cells, RowError):
        raise cells
    if len(cells) != len(header):
        raise RowError(f"The row has {len(cells)} cells and the header {len(header)}.")
    if not all(map(_is_unicode, cells)):
        raise RowError("The row is not UTF-8.", "text")
    return dict(zip(header, cells, strict=True))


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _needed(fields: Mapping[str, str], column: str) -> str:
    text = fields[column].strip()
    if not text:
        raise RowError(f"The row has no {column}.")
    return text


def _example(fields: Mapping[str, str], name: str, source: TsvSource) -> Example:
    question, answer = _needed(fields, "question"), _needed(fields, "answer")
    choices = _choices(fields)
    text = prompt(question, choices, fields.get("hint", "").strip())
    images = enumerate(_images(fields["image"].strip(), source.file))
    return Example(
        id=name,
        images=tuple(Image(data, f"{name}:{number}") for number, data in images),
        messages=(Message("user", text), Message("assistant", answer)),
        source=f"tsv/{source.file.stem}",
        split=source.split,
        answer=answer,
        category=fields.get("category", "").strip()
        or fields.get("l2-category", "").strip()
        or None,
        choices=choices,
    )


def _choices(fields: Mapping[str, str]) -> tuple[str, ...]:
    options = [fields.get(letter, "").strip() for letter in ascii_uppercase]
    choices = tuple(takewhile(bool, options))
    if any(options[len(choices) :]):
        raise RowError(
            f"The row has no option {ascii_uppercase[len(choices)]} and has one after it."
        )
    return choices


def _images(field: str, path: Path) -> list[bytes]:
    content = _shared(field, path) if 0 < len(field) <= _LONGEST_INDEX else field
    if content.startswith("["):
        return [_decoded(image) for image in _listed(content)]
    return [_decoded(content)] if content else []


def _decoded(text: object) -> bytes:
    try:
        if isinstance(text, str):
            return base64.b64decode(text, validate=True)
    except binascii.Error:
        pass
    raise RowError("The image is not base64.", "broken image")


def _listed(text: str) -> list[object]:
    """A list of texts as JSON or Python spells it."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list):
            return value
    raise RowError("The image begins like a list and is none.", "broken image")


def _shared(index: str, path: Path) -> str:
    """The image of the row with this index, which may itself share another row's."""
    stat = path.stat()
    places = _places(path, (stat.st_size, stat.st_mtime_ns))
    passed: list[str] = []
    while len(index) <= _LONGEST_INDEX:
        if index in passed:
            raise RowError(
                f"The image is that of row {passed[0]}, which leads back.", "missing image"
            )
        passed.append(index)
        if index not in places:
            raise RowError(
                f"The image is that of row {index}, which is not there.", "missing image"
            )
        index = _image_at(path, places[index])
    return index


@lru_cache(maxsize=4)
def _places(path: Path, stamp: tuple[int, int]) -> dict[str, int]:
    """Where the row of each index begins; `stamp` is there for the cache."""
    with open_binary(path, "TSV file") as file:
        header, start = _header(path, file, _SHARING)
        column = header.index("index")
        places: dict[str, int] = {}
        for offset, cells in _records(file, start):
            if isinstance(cells, list) and len(cells) == len(header):
                places.setdefault(cells[column].strip(), offset)
    return places


def _image_at(path: Path, place: int) -> str:
    with open_binary(path, "TSV file") as file:
        header, _ = _header(path, file, _SHARING)
        _, cells = next(_records(file, place))
        return _fields(cells, header)["image"].strip()
