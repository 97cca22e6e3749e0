"""Whether an example can be trained on, and how a row that cannot is told apart."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle

from PIL import Image as PilImage

from stagebeam.recipe import DataConfig
from stagebeam.records import Example, Message
from stagebeam.stages import find_tags, parse

# Formats that Pillow decodes by itself; others (EPS) would run a program on the bytes.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


@dataclass(frozen=True, slots=True)
class Refused:
    """A row of a source that is left out, and why, in one sentence."""

    id: str
    reason: str


def validated(rows: Iterable[Example | Refused], config: DataConfig) -> Iterator[Example | Refused]:
    """The rows, each example that `check` objects to replaced by its refusal."""
    for row in rows:
        if isinstance(row, Example) and (reason := check(row, config)) is not None:
            yield Refused(row.id or "(no id)", reason)
        else:
            yield row


def check(example: Example, config: DataConfig) -> str | None:
    """Why this example cannot be trained on, in one sentence; None if it can."""
    if not example.id.strip():
        return "The id is empty."
    return (
        _unicode_fault(example)
        or _turns_fault(example.messages)
        or _stages_fault(example.messages, config.require_stages)
        or _images_fault(example, config.max_image_pixels)
    )


def _unicode_fault(example: Example) -> str | None:
    texts = (example.id, *(message.text for message in example.messages))
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError:
        # JSON can spell half of a surrogate pair, which no file can hold.
        return "The text has a character that is not valid Unicode."
    return None


def _turns_fault(messages: tuple[Message, ...]) -> str | None:
    """A system message may come first; then user and assistant take turns."""
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not turns:
        return "The conversation is empty."
    # cycle() has no end, so the lengths differ by intent.
    for number, (turn, role) in enumerate(zip(turns, cycle(("user", "assistant")), strict=False)):
        if turn.role != role:
            return f"Turn {number + 1} is {turn.role}'s and should be {role}'s."
        if not turn.text.strip():
            return f"Turn {number + 1} is empty."
    if turns[-1].role != "assistant":
        return "The conversation does not end with the assistant."
    return None


def _stages_fault(messages: tuple[Message, ...], require_stages: bool) -> str | None:
    for number, message in enumerate(messages, start=1):
        if message.role == "user" and (tags := find_tags(message.text)):
            return f"Message {number}, a user's, contains the stage tag {tags[0]}."
        if message.role == "assistant" and require_stages:
            answer = parse(message.text)
            if not answer.valid:
                problems = ", ".join(map(str, answer.problems))
                return f"Message {number} is not a staged answer: {problems}."
    return None


def _images_fault(example: Example, max_pixels: int) -> str | None:
    for image in example.images:
        fault = _image_fault(image.bytes, max_pixels)
        if fault:
            return f"The image {image.path or '(unnamed)'} {fault}."
    return None


def _image_fault(data: bytes, max_pixels: int) -> str | None:
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images by a limit of its own; ours is checked below.
            warnings.simplefilter("ignore", PilImage.DecompressionBombWarning)
            with PilImage.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                if width * height > max_pixels:
                    return f"has {width} x {height} pixels, more than {max_pixels}"
                image.verify()
            # verify() reads headers and checksums; only decoding finds a file that is cut short.
            with PilImage.open(io.BytesIO(data), formats=FORMATS) as image:
                image.load()
    except PilImage.DecompressionBombError:
        return f"has more than {max_pixels} pixels"
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        return f"does not decode ({type(error).__name__})"
    return None
