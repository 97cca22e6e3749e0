"""The elements of a JSON array in a file of any length, one at a time.

Only where an element ends is found here; whether it is JSON is for the reader of its text. So an
element that is not costs itself, not what follows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from stagebeam.data.sources.row import MAX_ROW_BYTES

_CHUNK = 1 << 20
# A whole string, or a mark outside of strings; a lone quotation mark opens an unfinished string.
_MARK = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["{}\[\],]', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Element:
    """The bytes of an element and where they begin; `problem` says why the array ends with it."""

    offset: int
    text: bytes
    problem: str = ""


def first_offset(file: BinaryIO) -> int | None:
    """Where the first element begins, in bytes; None if the file is not an array."""
    head = file.read(_CHUNK)
    begin = len(head) - len(head.lstrip())
    return begin + 1 if head[begin : begin + 1] == b"[" else None


def elements(file: BinaryIO, offset: int) -> Iterator[Element]:
    """The elements from byte `offset`, where one begins, to the end of the array.

    Where the file ends before the array does, the last element has that as its problem, and
    what is there of a row that is not whole.
    """
    file.seek(offset)
    buffer, depth, scan = b"", 0, 0  # `buffer` begins at `offset`, and is scanned up to `scan`
    # Reading as much again as there is keeps the work on a long string linear.
    while chunk := file.read(max(_CHUNK, len(buffer))):
        buffer += chunk
        begin = 0
        for mark in _MARK.finditer(buffer, scan):
            token = mark[0]
            if token == b'"':
                scan = mark.start()
                break
            if depth == 0 and token in (b",", b"]"):
                text = buffer[begin : mark.start()].strip()
                if text or token == b",":
                    yield Element(offset + begin, text)
                if token == b"]":
                    return
                begin = mark.end()
            elif token in (b"{", b"["):
                depth += 1
            elif token in (b"}", b"]"):
                depth = max(0, depth - 1)
        else:
            scan = len(buffer)
        offset, buffer, scan = offset + begin, buffer[begin:], scan - begin
        if len(buffer) > MAX_ROW_BYTES:
            yield Element(offset, buffer, f"A row is longer than {MAX_ROW_BYTES} bytes.")
            return
    if buffer.strip() and depth == 0 and scan == len(buffer):
        yield Element(offset, buffer.strip())
        offset, buffer = offset + len(buffer), b""
    yield Element(offset, buffer, "The file ends early, before its array does.")
