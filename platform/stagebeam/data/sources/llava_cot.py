"""The LLaVA-CoT-100k form: a jsonl of conversations, and the images in a folder or zip file.

A row is `{"id", "image": relative path, "conversations": [{"from": "human"|"gpt", "value"}]}`.
The image may be left out, or be a list of paths. The first folder of the first path (`sqa/`,
`chartqa/`, ...) names the data set that the row was taken from.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedReader
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from stagebeam.data.refusal import Refused
from stagebeam.data.sources.files import cut, digest, open_binary, with_absolute
from stagebeam.data.sources.image_store import ImageStore, images_of, open_store
from stagebeam.data.sources.row import MAX_ROW_BYTES, json_row, text_of
from stagebeam.data.sources.span import Span
from stagebeam.data.sources.turns import messages
from stagebeam.records import Example, Image
from stagebeam.source_config import LlavaCotSource


def spans(source: LlavaCotSource, rows: int | None) -> Iterator[Span[LlavaCotSource]]:
    """Stretches of at most `rows` lines; one, if that is None.

    Raises ValueError if the jsonl or the images are not there.
    """
    open_store(source.image_root)
    with open_binary(source.annotations, "annotations") as file:
        yield from cut(source, (offset for offset, _ in _lines(file, 0)), rows, 0)


def read_span(span: Span[LlavaCotSource]) -> Iterator[Example | Refused]:
    """The rows of one stretch; blank lines are none."""
    source = span.source
    store = open_store(source.image_root)
    with open_binary(source.annotations, "annotations") as file:
        lines = islice(_lines(file, span.offset), span.rows)
        for number, (_, line) in enumerate(lines, start=span.first + 1):
            if line.strip():
                place = f"{source.annotations.name}:{number}"
                yield json_row(line, place, lambda row: _example(row, store, source.split))


def fingerprint(source: LlavaCotSource) -> str:
    """Changes with the settings and the content of the jsonl; ValueError if it is not there."""
    open_store(source.image_root)
    with open_binary(source.annotations, "annotations") as file:
        return digest(source, file)


def absolute(source: LlavaCotSource) -> LlavaCotSource:
    """The source with absolute paths."""
    return with_absolute(source, "annotations", "image_root")


def _lines(file: BufferedReader, offset: int) -> Iterator[tuple[int, bytes]]:
    """Where each line begins and its bytes; of one that is too long, enough to refuse it."""
    file.seek(offset)
    while line := file.readline(MAX_ROW_BYTES + 1):
        yield offset, line
        offset += len(line)
        more = line
        while len(more) > MAX_ROW_BYTES and not more.endswith(b"\n"):
            more = file.readline(MAX_ROW_BYTES + 1)
            offset += len(more)


def _example(row: dict[str, Any], store: ImageStore, split: str) -> Example:
    name = text_of(row, "id")
    images = images_of(row, store)
    return Example(
        id=name,
        images=images,
        messages=messages(row),
        source=_source_name(images),
        split=split,
    )


def _source_name(images: tuple[Image, ...]) -> str:
    if not images:
        return "llava_cot/text"
    folders = PurePosixPath(images[0].path).parts[:-1]
    return f"llava_cot/{folders[0]}" if folders else "llava_cot"
