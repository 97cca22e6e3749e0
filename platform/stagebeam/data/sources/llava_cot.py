"""The LLaVA-CoT-100k form: a jsonl of conversations and the folders of images beside it.

A row is `{"id", "image": relative path, "conversations": [{"from": "human"|"gpt", "value"}]}`.
The image may be left out. The first folder of its path (`sqa/`, `chartqa/`, ...) names the data
set that the row was taken from. A row that is not of this form is refused, never raised.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BufferedReader
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from stagebeam.data.validate import Refused
from stagebeam.recipe import LlavaCotSource
from stagebeam.records import Example, Image, Message, Role

_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant"}


class _RowError(Exception):
    """The reason why a line is refused."""


def read(source: LlavaCotSource) -> Iterator[Example | Refused]:
    """Every row, in the order of the file, read line by line.

    Raises ValueError if the jsonl or the image folder is not there.
    """
    yield from read_lines(source, 0, source.limit, 0)


def spans(source: LlavaCotSource, rows: int) -> Iterator[tuple[int, int, int]]:
    """(first line from 0, lines, byte offset) of stretches of at most `rows` lines.

    Raises ValueError if the jsonl or the image folder is not there.
    """
    with open_annotations(source) as file:
        first = offset = 0
        lines = islice(file, source.limit)
        while lengths := [len(line) for line in islice(lines, rows)]:
            yield first, len(lengths), offset
            first += len(lengths)
            offset += sum(lengths)


def read_lines(
    source: LlavaCotSource, first: int, count: int | None, offset: int
) -> Iterator[Example | Refused]:
    """`count` lines (None: all) from byte `offset`, where line number `first` (from 0) begins."""
    root = source.image_root.resolve()
    with open_annotations(source) as file:
        file.seek(offset)
        for number, line in enumerate(islice(file, count), start=first + 1):
            if line.strip():
                yield _row(line, f"{source.annotations.name}:{number}", root, source.split)


def open_annotations(source: LlavaCotSource) -> BufferedReader:
    """The jsonl, to read; raises ValueError if it or the image folder is not there."""
    if not source.image_root.is_dir():
        raise ValueError(f"There is no image folder {source.image_root}.")
    try:
        return source.annotations.open("rb")
    except OSError as error:
        reason = error.strerror or "it cannot be read"
        raise ValueError(f"Cannot open the annotations {source.annotations}: {reason}.") from None


def _row(line: bytes, place: str, root: Path, split: str) -> Example | Refused:
    """`place` stands for the id of a line that has none of its own."""
    name = place
    try:
        row = _object(line)
        name = _text(row, "id", "The row")
        path = (
            PurePosixPath(_text(row, "image", "The row")) if row.get("image") is not None else None
        )
        return Example(
            id=name,
            images=() if path is None else (_image(root, path),),
            messages=tuple(_messages(row)),
            source=_source_name(path),
            split=split,
        )
    except _RowError as reason:
        return Refused(name.strip() or place, str(reason))


def _object(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):  # not UTF-8, not JSON, nested too deep
        raise _RowError("The line is not valid JSON.") from None
    if not isinstance(row, dict):
        raise _RowError("The line is not a JSON object.")
    return row


def _text(row: dict[str, Any], key: str, what: str) -> str:
    if key not in row:
        raise _RowError(f"{what} has no '{key}'.")
    if not isinstance(row[key], str):
        raise _RowError(f"{what} has a '{key}' that is not text.")
    return row[key]


def _messages(row: dict[str, Any]) -> Iterator[Message]:
    turns = row.get("conversations")
    if not isinstance(turns, list):
        raise _RowError("The row has no list of 'conversations'.")
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise _RowError(f"Turn {number} is not a JSON object.")
        speaker = _text(turn, "from", f"Turn {number}")
        if speaker not in _ROLES:
            raise _RowError(f"Turn {number} is from {speaker[:40]!r}, neither 'human' nor 'gpt'.")
        yield Message(_ROLES[speaker], _text(turn, "value", f"Turn {number}"))


def _image(root: Path, path: PurePosixPath) -> Image:
    try:
        # resolve() follows links too: nothing outside the folder is read, however it is spelled.
        found = (root / path).resolve()
        if not found.is_relative_to(root):
            raise _RowError(f"The image path {path} leads out of the image folder.")
        return Image(found.read_bytes(), str(path))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise _RowError(f"There is no image file {path}.") from None
    except (OSError, ValueError, RuntimeError):  # no permission, a NUL byte, a loop of links
        raise _RowError(f"The image file {str(path)[:200]!r} cannot be read.") from None


def _source_name(path: PurePosixPath | None) -> str:
    if path is None:
        return "llava_cot/text"
    return f"llava_cot/{path.parts[0]}" if len(path.parts) > 1 else "llava_cot"
