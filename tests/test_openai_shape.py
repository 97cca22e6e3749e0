"""Conversations as OpenAI-compatible endpoints take them."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image as PilImage

from stagebeam.openai_shape import openai_messages
from stagebeam.records import Message

TURNS = (
    Message("system", "Be brief."),
    Message("user", "What is it?"),
    Message("assistant", "A cat."),
    Message("user", "Which one?"),
)


def encoded(form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    PilImage.new("RGB", (4, 4)).save(buffer, form, **options)
    return buffer.getvalue()


def test_the_images_lead_the_first_user_turn_and_the_other_turns_are_text() -> None:
    images = [encoded("PNG"), encoded("JPEG")]
    shaped: list[Any] = openai_messages(TURNS, images)
    assert [m["role"] for m in shaped] == ["system", "user", "assistant", "user"]
    assert [shaped[n]["content"] for n in (0, 2, 3)] == ["Be brief.", "A cat.", "Which one?"]
    *parts, text = shaped[1]["content"]
    assert text == {"type": "text", "text": "What is it?"}
    urls = [part["image_url"]["url"] for part in parts]
    assert [url.partition(";")[0] for url in urls] == ["data:image/png", "data:image/jpeg"]
    assert [base64.b64decode(url.partition(",")[2]) for url in urls] == images


def test_without_images_every_turn_is_plain_text() -> None:
    shaped: list[Any] = openai_messages(TURNS, [])
    assert [m["content"] for m in shaped] == [turn.text for turn in TURNS]


def test_the_several_pictures_of_a_phone_go_as_jpeg() -> None:
    several = encoded("MPO", save_all=True, append_images=[PilImage.new("RGB", (4, 4))])
    (message,) = openai_messages([Message("user", "?")], [several])
    content: Any = message["content"]
    assert content[0]["image_url"]["url"].startswith("data:image/jpeg;base64,")


def test_bytes_that_are_no_image_are_an_error() -> None:
    with pytest.raises(OSError, match="cannot identify"):
        openai_messages([Message("user", "?")], [b"text"])
