"""The LLaVA instruction form: one JSON array of conversations with `<image>` placeholders.

A row is `{"id", "image": relative path, "conversations": [{"from": "human"|"gpt", "value"}]}`.
The image may be left out, or be a list of paths. Ids are those of the images, so they repeat.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedReader
from itertools import islice
from typing import Any

from stagebeam.data.refusal import Refused
from stagebeam.data.sources.files import cut, digest, open_binary, with_absolute
from stagebeam.data.sources.image_store import ImageStore, images_of, open_store
from stagebeam.data.sources.json_array import Element, elements, first_offset
from stagebeam.data.sources.row import RowError, id_of, json_row, refusal
from stagebeam.data.sources.span import Span
from stagebeam.data.sources.turns import messages, without_placeholders
from stagebeam.records import Example
from stagebeam.source_config import LlavaInstructSource


def spans(source: LlavaInstructSource, rows: int | None) -> Iterator[Span[LlavaInstructSource]]:
    """Stretches of at most `rows` rows; one, if that is None.

    Raises ValueError if the file or the images are not there, or if it is not a JSON array.
    """
    open_store(source.image_root)
    with open_binary(source.annotations, "annotations") as file:
        start = _start(source, file)
        offsets = (element.offset for element in elements(file, start))
        yield from cut(source, offsets, rows, start)


def read_span(span: Span[LlavaInstructSource]) -> Iterator[Example | Refused]:
    """The rows of one stretch."""
    source = span.source
    store = open_store(source.image_root)
    with open_binary(source.annotations, "annotations") as file:
        rows = islice(elements(file, span.offset), span.rows)
        for number, element in enumerate(rows, start=span.first + 1):
            yield _row(element, f"{source.annotations.name}:{number}", source, store)


def fingerprint(source: LlavaInstructSource) -> str:
    """Changes with the settings and the content of the file; ValueError if it is not there."""
    open_store(source.image_root)
    with open_binary(source.annotations, "annotations") as file:
        return digest(source, file)


def absolute(source: LlavaInstructSource) -> LlavaInstructSource:
    """The source with absolute paths."""
    return with_absolute(source, "annotations", "image_root")


def _start(source: LlavaInstructSource, file: BufferedReader) -> int:
    start = first_offset(file)
    if start is None:
        raise ValueError(
            f"The file {source.annotations} does not begin with a JSON array; "
            "one object a line is the form of the kind llava_cot."
        )
    return start


def _row(
    element: Element, place: str, source: LlavaInstructSource, store: ImageStore
) -> Example | Refused:
    if element.problem:
        rest = element.text.decode(errors="replace")
        return refusal(RowError(element.problem), None, place, rest)
    return json_row(element.text, place, lambda row: _example(row, source, store))


def _example(row: dict[str, Any], source: LlavaInstructSource, store: ImageStore) -> Example:
    name = id_of(row)
    images = images_of(row, store)
    return Example(
        id=name,
        images=images,
        messages=without_placeholders(messages(row), len(images), needed=True),
        source=f"llava_instruct/{source.annotations.stem}",
        split=source.split,
    )
