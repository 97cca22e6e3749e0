"""Conversations as data sets spell them, and the places that they leave for images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from stagebeam.data.sources.row import RowError, text_of
from stagebeam.records import Message, Role

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_IMAGE = "<image>"


def messages(row: Mapping[str, Any], key: str = "conversations") -> tuple[Message, ...]:
    """The turns under `key`, each `{"from", "value"}` or `{"role", "content"}`.

    Content may be text or a list of `{"type": "text"|"image", "text"}`; a part that is an image
    becomes the placeholder `<image>` on a line of its own.
    """
    turns = row.get(key)
    if not isinstance(turns, list):
        raise RowError(f"The row has no list of '{key}'.")
    return tuple(_message(turn, f"Turn {number}") for number, turn in enumerate(turns, start=1))


def _message(turn: object, what: str) -> Message:
    if not isinstance(turn, dict):
        raise RowError(f"{what} is not a JSON object.")
    who, said = ("role", "content") if "role" in turn else ("from", "value")
    speaker = text_of(turn, who, what)
    if speaker not in _ROLES:
        raise RowError(f"{what} is from {speaker[:40]!r}, not a human, a model or the system.")
    if isinstance(turn.get(said), list):
        return Message(_ROLES[speaker], "\n".join(_parts(turn[said], what)))
    return Message(_ROLES[speaker], text_of(turn, said, what))


def _parts(content: Sequence[object], what: str) -> Iterator[str]:
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, dict) and kind == "text":
            yield text_of(part, "text", what)
        elif kind == "image":
            yield _IMAGE
        else:
            raise RowError(f"{what} has a part that is neither text nor image.")


def without_placeholders(
    turns: Sequence[Message], images: int, *, needed: bool
) -> tuple[Message, ...]:
    """The turns without `<image>`, as a record has the images before the first user turn.

    Placeholders must stand for all images, in the first user turn; unless they are `needed` there
    may also be none. A line that holds nothing else goes with them.
    """
    asked = [number for number, turn in enumerate(turns) if turn.role == "user"]
    counts = {number: turns[number].text.count(_IMAGE) for number in asked}
    total = sum(counts.values())
    if total != images and (needed or total):
        raise RowError(f"The turns have {total} {_IMAGE} and the row has {images} images.")
    if total and counts[asked[0]] != total:
        raise RowError(f"There is an {_IMAGE} after the first user turn.")
    return tuple(
        replace(turn, text=_cleared(turn.text)) if counts.get(number) else turn
        for number, turn in enumerate(turns)
    )


def _cleared(text: str) -> str:
    lines = ((line, re.sub(f" ?{_IMAGE}", "", line).strip()) for line in text.split("\n"))
    kept = (bare if _IMAGE in line else line for line, bare in lines if bare or _IMAGE not in line)
    return "\n".join(kept).strip("\n")
