"""How a row that is left out is told apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Fault = Literal[
    "malformed row",
    "missing image",
    "unsafe path",
    "broken image",
    "large image",
    "turns",
    "stages",
    "tags in a question",
    "text",
    "duplicate",
]


@dataclass(frozen=True, slots=True)
class Refused:
    """A row of a source that is left out, and why.

    `id` is the row's own, or its place (`train.jsonl:17`) if it has none that can be read. `row`
    is what could be read of it, as text, so that it can be mended.
    """

    id: str
    fault: Fault
    reason: str  # one sentence
    row: str = ""
