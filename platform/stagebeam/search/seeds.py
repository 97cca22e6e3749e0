"""Where randomness comes from: hashes, so that a call gives the same text wherever it runs."""

from __future__ import annotations

import hashlib
import json

from stagebeam.inference.types import Prompt


def image_digest(image: bytes) -> str:
    """SHA-256 of an encoded image, hex."""
    return hashlib.sha256(image).hexdigest()


def question_key(prompt: Prompt) -> str:
    """SHA-256, hex, over every turn and every image's bytes."""
    turns = [[message.role, message.text] for message in prompt.messages]
    parts: list[object] = [turns, [image_digest(image) for image in prompt.images]]
    if prompt.places:
        parts.append(prompt.places)
    return _hash(parts).hex()


def candidate_seed(run_seed: int, question_key: str, stage_name: str, index: int) -> int:
    """Seed of one candidate, 63 bits.

    It does not depend on N: the first 2 of 4 candidates are those of a search with N = 2.
    """
    digest = _hash([run_seed, question_key, stage_name, index])
    return int.from_bytes(digest[:8], "big") >> 1


def _hash(parts: list[object]) -> bytes:
    return hashlib.sha256(json.dumps(parts).encode()).digest()
