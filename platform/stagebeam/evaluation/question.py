"""What an example asks."""

from __future__ import annotations

import hashlib
import json

from stagebeam.inference.types import Prompt
from stagebeam.records import Example
from stagebeam.search.seeds import question_key


def prompt_of(example: Example) -> Prompt:
    """The example without its last, assistant's turn."""
    return Prompt(example.messages[:-1], tuple(image.bytes for image in example.images))


def digest_of(example: Example) -> str:
    """Twelve hex digits that change with the question and with what its answer is scored by."""
    asked = [question_key(prompt_of(example)), example.answer, example.choices]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]
