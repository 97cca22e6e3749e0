"""What an image-QA example is, whatever it came from. Every source yields `Example`s."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]

# Formats that Pillow decodes by itself; others (EPS) would run a program on the bytes.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, as plain text. Images come before the first user turn."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """An encoded image (PNG, JPEG, ...) as it came, and the relative path that it came from."""

    bytes: bytes
    path: str = ""


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation about zero or more images; the turns alternate and end with the assistant.

    `answer` is the gold short answer of the last turn, `choices` its options in letter order
    (empty for a free answer), `category` the kind of question.
    """

    id: str
    images: tuple[Image, ...]
    messages: tuple[Message, ...]
    source: str
    split: str = "train"
    answer: str | None = None
    category: str | None = None
    choices: tuple[str, ...] = ()
