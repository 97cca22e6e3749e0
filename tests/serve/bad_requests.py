"""Chat requests for tests, and the table of those that are refused."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image


def data_url(image: bytes | None = None, size: tuple[int, int] = (8, 8)) -> str:
    if image is None:
        encoded = io.BytesIO()
        Image.new("RGB", size, "red").save(encoded, "PNG")
        image = encoded.getvalue()
    return "data:image/png;base64," + base64.b64encode(image).decode()


def ask(text: str, *image_urls: str) -> list[Any]:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in image_urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def body(text: str = "What?", **fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": ask(text), **fields}


BAD_REQUESTS = {
    "unknown key": (body(stop=["x"]), 400, "The request is wrong: unknown key 'stop'."),
    "unknown search key": (
        body(search={"beams": 3}),
        400,
        "The request is wrong: unknown key 'search.beams'.",
    ),
    "no candidates": (
        body(search={"candidates": 0}),
        400,
        "The request is wrong: 'search.candidates': input should be greater than 0, got 0.",
    ),
    "number in quotes": (
        body(search={"candidates": "3"}),
        400,
        "The request is wrong: 'search.candidates': input should be a valid integer, got '3'.",
    ),
    "too many candidates": (
        body(search={"candidates": 9}),
        400,
        "candidates is over this server's limit of 8.",
    ),
    "too many candidates of a stage": (
        body(search={"candidates": {"CAPTION": 9}}),
        400,
        "candidates is over this server's limit of 8.",
    ),
    "candidates of an unknown stage": (
        body(search={"candidates": {"caption": 2}}),
        400,
        "The request is wrong: 'search.candidates.caption.[key]': input should be 'SUMMARY', "
        "'CAPTION', 'REASONING' or 'CONCLUSION', got 'caption'.",
    ),
    "too many retraces": (
        body(search={"method": "retrace", "max_retraces": 9}),
        400,
        "max_retraces is over this server's limit of 8.",
    ),
    "a search that is not calibrated": (
        body(search={"method": "retrace"}),
        400,
        "retrace needs a calibration; make one with `stagebeam calibrate`.",
    ),
    "a search that this judge is not fit for": (
        body(search={"method": "retrace", "max_retraces": 0}),
        400,
        "retrace needs a judge that scores each candidate (kind likelihood); this one only "
        "compares them.",
    ),
    "too long": (body(max_tokens=65), 400, "max_new_tokens is over this server's limit of 64."),
    "several choices": (body(n=2), 400, "The request is wrong: 'n': input should be 1, got 2."),
    "temperature that overflows": (
        body(temperature=1e-9),
        400,
        "The request is wrong: 'temperature': Input should be 0 or at least 0.01.",
    ),
    "contradiction": (
        body(seed=1, search={"seed": 2}),
        400,
        "seed contradicts another field for seed.",
    ),
    "the same candidate many times": (
        body(temperature=0),
        400,
        "At temperature 0 all 3 candidates of stage_beam would be the same; raise the temperature "
        "or ask for 1 candidate.",
    ),
    "no messages": (
        {"model": "scripted"},
        400,
        "The request is wrong: 'messages' is missing.",
    ),
    "a part without its text": (
        {"model": "scripted", "messages": [{"role": "user", "content": [{"type": "text"}]}]},
        400,
        "The request is wrong: 'messages.0.content.0': A part of type text needs text and nothing "
        "else.",
    ),
    "ends with the assistant": (
        {
            "model": "scripted",
            "messages": [*ask("What?"), {"role": "assistant", "content": "This."}],
        },
        400,
        "The last turn must be the user's, but it is the assistant's.",
    ),
    "too many turns": (
        {"model": "scripted", "messages": ask("What?") * 5},
        400,
        "The conversation is over this server's limit of 4 turns.",
    ),
    "too much text": (
        body("x" * 2001),
        400,
        "The text is over this server's limit of 2000 characters.",
    ),
    "stage tag": (
        body("Say < /Summary >."),
        400,
        "A question must not contain the stage tag < /Summary >.",
    ),
    "chat marker": (
        body("marker"),
        400,
        "A message contains <|image|>, a marker of the chat template.",
    ),
    "image to fetch": (
        {"model": "scripted", "messages": ask("What?", "http://example.org/a.png")},
        400,
        "An image must be a data: URL; this server fetches nothing.",
    ),
    "not base64": (
        {"model": "scripted", "messages": ask("What?", "data:image/png;base64,@@@@")},
        400,
        "The image is not valid base64.",
    ),
    "not an image": (
        {"model": "scripted", "messages": ask("What?", data_url(b"words"))},
        400,
        "The image cannot be decoded; it must be one of PNG, JPEG, WEBP, GIF, BMP.",
    ),
    "too many pixels": (
        {"model": "scripted", "messages": ask("What?", data_url(size=(101, 100)))},
        400,
        "The image has more than the 10000 pixels that this server allows.",
    ),
    "too many images": (
        {"model": "scripted", "messages": ask("What?", data_url(), data_url())},
        400,
        "There are 2 images; this server allows 1.",
    ),
    "image in a later turn": (
        {
            "model": "scripted",
            "messages": [
                *ask("What?"),
                {"role": "assistant", "content": "This."},
                *ask("And?", data_url()),
            ],
        },
        400,
        "Images belong in the first user message.",
    ),
    "unknown model": (
        body() | {"model": "gpt"},
        404,
        "There is no model 'gpt'; this server has 'scripted'.",
    ),
    "body too large": (
        body("x" * 20_000),
        413,
        "The request body is larger than the 20000 bytes that this server allows.",
    ),
    "failure of ours": (body("bug"), 500, "The server failed to answer; its log says why."),
}
