"""What a row is by its content, whatever it is called and wherever it lies."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from stagebeam.data.layout import TRAIN_SPLIT
from stagebeam.records import Example
from stagebeam.source_config import HeldOut

DIGEST_BYTES = 16


def digest(example: Example) -> bytes:
    """Equal for two rows with the same images (their bytes), turns, answer and choices."""
    told = [_turns(example), example.answer, list(example.choices)]
    return _hash(_images(example), json.dumps(told).encode())


def assigned(example: Example, held_out: HeldOut | None) -> Example:
    """The example, under the held-out split if it is a training row that is to be kept back.

    The images decide (a text-only row: its turns), so rows about the same images fall on the same
    side, on every machine and whatever the other rows are.
    """
    if held_out is None or example.split != TRAIN_SPLIT:
        return example
    key = _images(example) if example.images else json.dumps(_turns(example)).encode()
    place = int.from_bytes(_hash(b"held out", key)[:8], "big") / 2**64
    return replace(example, split=held_out.split) if place < held_out.share else example


def _images(example: Example) -> bytes:
    return b"".join(hashlib.sha256(image.bytes).digest() for image in example.images)


def _turns(example: Example) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in example.messages]


def _hash(*texts: bytes) -> bytes:
    whole = hashlib.sha256()
    for text in texts:
        whole.update(len(text).to_bytes(8, "big") + text)
    return whole.digest()[:DIGEST_BYTES]
