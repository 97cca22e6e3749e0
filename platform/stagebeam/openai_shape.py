"""A conversation in the shape that OpenAI-compatible endpoints take."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from typing import Any, cast

from openai.types.chat import ChatCompletionMessageParam
from PIL import Image as PilImage

from stagebeam.records import Message


def openai_messages(
    messages: Iterable[Message], images: Iterable[bytes], places: Sequence[int] = ()
) -> list[ChatCompletionMessageParam]:
    """The turns; the images, as data URLs, lead the first user turn, or the turns that `places`
    names, one for each image."""
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images
    ]
    shaped: list[dict[str, Any]] = []
    unplaced = not places
    for turn, message in enumerate(messages):
        content: str | list[dict[str, Any]] = message.text
        mine = [part for part, place in zip(parts, places, strict=False) if place == turn]
        if message.role == "user" and unplaced:
            mine, unplaced = parts, False
        if mine:
            content = [*mine, {"type": "text", "text": message.text}]
        shaped.append({"role": message.role, "content": content})
    return cast(list[ChatCompletionMessageParam], shaped)


def _data_url(encoded: bytes) -> str:
    with PilImage.open(io.BytesIO(encoded)) as image:
        # MPO is what phones make of JPEG; decoders of JPEG read it.
        kind = "image/jpeg" if image.format == "MPO" else image.get_format_mimetype()
    return f"data:{kind};base64,{base64.b64encode(encoded).decode()}"
