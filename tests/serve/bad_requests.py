"""Chat requests for tests, and the table of those that are refused."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

from PIL import Image


def data_url(image: bytes | None = None, size: tuple[int, int] = (8, 8)) -> str:
    image = picture("PNG", size) if image is None else image
    return "data:image/png;base64," + base64.b64encode(image).decode()


def picture(kind: str, size: tuple[int, int] = (8, 8), **options: Any) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", size, "red").save(encoded, kind, **options)
    return encoded.getvalue()


def film(kind: str) -> bytes:
    """Two frames."""
    return picture(kind, save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")])


def claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims this size, with the bytes of a small one behind it."""
    small = picture("PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


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
        "The request is wrong: 'messages.0.content.0.text.text' is missing.",
    ),
    "a part of two kinds": (
        {
            "model": "scripted",
            "messages": [{"role": "user", "content": [{"type": "text", "text": "", "url": ""}]}],
        },
        400,
        "The request is wrong: unknown key 'messages.0.content.0.text.url'.",
    ),
    "a part of no known kind": (
        {"model": "scripted", "messages": [{"role": "user", "content": [{"type": "audio"}]}]},
        400,
        "The request is wrong: 'messages.0.content.0': input tag 'audio' found using 'type' does "
        "not match any of the expected tags: 'text', 'image_url', got {'type': 'audio'}.",
    ),
    "NUL": (
        body("a\0b"),
        400,
        "The request is wrong: 'messages.0.content.0.text.text': Text must not hold NUL "
        "characters.",
    ),
    "a method that the operator keeps": (
        body(search={"method": "sentence_beam"}),
        400,
        "method must be one of greedy, majority, best_of_n, stage_beam, retrace on this server.",
    ),
    "a tournament that the operator keeps": (
        body(search={"tournament": "bracket"}),
        400,
        "tournament must be one of chain, round_robin, finals, arrival, auto on this server.",
    ),
    "reasons that the operator keeps": (
        body(search={"explain": True}),
        400,
        "explain cannot be asked for on this server.",
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
    "file to read": (
        {"model": "scripted", "messages": ask("What?", "file:///etc/passwd")},
        400,
        "An image must be a data: URL; this server fetches nothing.",
    ),
    "image not in base64": (
        {"model": "scripted", "messages": ask("What?", "data:image/png,%00")},
        400,
        "An image must be a data: URL in base64.",
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
    "an image of another kind": (
        {"model": "scripted", "messages": ask("What?", data_url(picture("TIFF")))},
        400,
        "The image cannot be decoded; it must be one of PNG, JPEG, WEBP, GIF, BMP.",
    ),
    "an image that breaks off": (
        {"model": "scripted", "messages": ask("What?", data_url(picture("PNG", (90, 90))[:120]))},
        400,
        "The image cannot be decoded; it must be one of PNG, JPEG, WEBP, GIF, BMP.",
    ),
    "too many pixels": (
        {"model": "scripted", "messages": ask("What?", data_url(size=(101, 100)))},
        400,
        "The image has more than the 10000 pixels that this server allows.",
    ),
    "a header that claims gigapixels": (
        {"model": "scripted", "messages": ask("What?", data_url(claiming(60_000, 60_000)))},
        400,
        "The image has more than the 10000 pixels that this server allows.",
    ),
    "a header that claims the most there is": (
        {"model": "scripted", "messages": ask("What?", data_url(claiming(2**31 - 1, 2**31 - 1)))},
        400,
        "The image has more than the 10000 pixels that this server allows.",
    ),
    "an image without an area": (
        {"model": "scripted", "messages": ask("What?", data_url(claiming(0, 5)))},
        400,
        "The image cannot be decoded; it must be one of PNG, JPEG, WEBP, GIF, BMP.",
    ),
    "a very long image": (
        {"model": "scripted", "messages": ask("What?", data_url(size=(1, 101)))},
        400,
        "An image's longer side may be 100 times the shorter one; this one has 1 x 101 pixels.",
    ),
    "an animated image": (
        {"model": "scripted", "messages": ask("What?", data_url(film("GIF")))},
        400,
        "The image is animated; send one frame of it.",
    ),
    "an animated PNG": (
        {"model": "scripted", "messages": ask("What?", data_url(film("PNG")))},
        400,
        "The image is animated; send one frame of it.",
    ),
    "too many images": (
        {"model": "scripted", "messages": ask("What?", data_url(), data_url(), data_url())},
        400,
        "There are 3 images; this server allows 2.",
    ),
    "an image of the assistant's": (
        {
            "model": "scripted",
            "messages": [
                *ask("What?"),
                {"role": "assistant", "content": ask("This.", data_url())[0]["content"]},
                *ask("And?"),
            ],
        },
        400,
        "Images belong in the user's messages.",
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
