"""One row: why it is refused, and how its parts are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from stagebeam.data.refusal import Fault, Refused
from stagebeam.records import Example

MAX_ROW_BYTES = 64 << 20  # a longer row is a file that lost its line breaks, and is not held
_KEPT_CHARACTERS = 1 << 20  # of a refused row


class RowError(Exception):
    """The reason why a row is refused, in one sentence."""

    def __init__(self, reason: str, fault: Fault = "malformed row") -> None:
        super().__init__(reason)
        self.fault: Fault = fault


def refusal(error: RowError, name: object, place: str, row: str) -> Refused:
    """The row's refusal; `place` stands for a `name` that is no text."""
    own = name if isinstance(name, str) and name.strip() else place
    kept = row[:_KEPT_CHARACTERS]
    return Refused(_valid(own), error.fault, _valid(str(error)), _valid(kept))


def _valid(text: str) -> str:
    """JSON can spell half of a surrogate pair, which no file can hold."""
    return text.encode(errors="replace").decode()


def json_row(
    raw: bytes, place: str, build: Callable[[dict[str, Any]], Example]
) -> Example | Refused:
    """What `build` makes of the JSON object in `raw`, or its refusal under its own id."""
    row: dict[str, Any] = {}
    try:
        row = _json_object(raw)
        return build(row)
    except RowError as error:
        return refusal(error, row.get("id"), place, raw.decode(errors="replace"))


def _json_object(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_ROW_BYTES:
        raise RowError(f"The row is longer than {MAX_ROW_BYTES} bytes.")
    try:
        row = json.loads(raw.decode())
    except (ValueError, RecursionError):  # not UTF-8, not JSON, nested too deep
        raise RowError("The row is not valid JSON.") from None
    if not isinstance(row, dict):
        raise RowError("The row is not a JSON object.")
    return row


def text_of(row: Mapping[str, Any], key: str, what: str = "The row") -> str:
    """The text under `key`."""
    if key not in row:
        raise RowError(f"{what} has no '{key}'.")
    if not isinstance(row[key], str):
        raise RowError(f"{what} has a '{key}' that is not text.")
    return row[key]


def id_of(row: Mapping[str, Any], key: str = "id") -> str:
    """The id under `key`, which may be a whole number."""
    value = row.get(key)
    number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if number else text_of(row, key)
