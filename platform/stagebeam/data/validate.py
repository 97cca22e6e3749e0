"""Whether an example can be trained on, and how a row that cannot is told apart."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterable, Iterator
from itertools import cycle

from PIL import Image as PilImage

from stagebeam.data.refusal import Fault, Refused
from stagebeam.recipe import DataConfig
from stagebeam.records import IMAGE_FORMATS, Example, Message
from stagebeam.source_config import Source
from stagebeam.stages import find_tags, parse

Problem = tuple[Fault, str]


def rules(config: DataConfig, source: Source) -> DataConfig:
    """The data section as it holds for the rows of this source."""
    if source.require_stages is None:
        return config
    return config.model_copy(update={"require_stages": source.require_stages})


def validated(rows: Iterable[Example | Refused], config: DataConfig) -> Iterator[Example | Refused]:
    """The rows, each example that `check` objects to replaced by its refusal."""
    for row in rows:
        if isinstance(row, Example) and (problem := check(row, config)) is not None:
            fault, reason = problem
            yield Refused(row.id if row.id.strip() else "(no id)", fault, reason, as_text(row))
        else:
            yield row


def check(example: Example, config: DataConfig) -> Problem | None:
    """Why this example cannot be trained on: the fault and one sentence; None if it can."""
    if not example.id.strip():
        return "text", "The id is empty."
    return (
        _unicode_problem(example)
        or _turns_problem(example.messages)
        or _stages_problem(example.messages, config.require_stages)
        or _images_problem(example, config.max_image_pixels)
    )


def as_text(example: Example) -> str:
    """The row as JSON, its images by their paths."""
    return json.dumps(
        {
            "id": example.id,
            "images": [image.path for image in example.images],
            "conversations": [{"role": m.role, "text": m.text} for m in example.messages],
            "source": example.source,
            "split": example.split,
            "answer": example.answer,
            "category": example.category,
            "choices": example.choices,
        }
    )


def _unicode_problem(example: Example) -> Problem | None:
    named = (example.source, example.split, example.answer or "", example.category or "")
    paths = (image.path for image in example.images)
    turns = (message.text for message in example.messages)
    try:
        for text in (example.id, *named, *paths, *turns, *example.choices):
            text.encode()
    except UnicodeEncodeError:
        # JSON can spell half of a surrogate pair, which no file can hold.
        return "text", "The text has a character that is not valid Unicode."
    return None


def _turns_problem(messages: tuple[Message, ...]) -> Problem | None:
    """A system message may come first; then user and assistant take turns."""
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not turns:
        return "turns", "The conversation is empty."
    # cycle() has no end, so the lengths differ by intent.
    for number, (turn, role) in enumerate(zip(turns, cycle(("user", "assistant")), strict=False)):
        if turn.role != role:
            return "turns", f"Turn {number + 1} is {turn.role}'s and should be {role}'s."
        if not turn.text.strip():
            return "turns", f"Turn {number + 1} is empty."
    if turns[-1].role != "assistant":
        return "turns", "The conversation does not end with the assistant."
    return None


def _stages_problem(messages: tuple[Message, ...], require_stages: bool) -> Problem | None:
    for number, message in enumerate(messages, start=1):
        if message.role == "user" and (tags := find_tags(message.text)):
            reason = f"Message {number}, a user's, contains the stage tag {tags[0]}."
            return "tags in a question", reason
        if message.role == "assistant" and require_stages:
            answer = parse(message.text)
            if not answer.valid:
                problems = ", ".join(map(str, answer.problems))
                return "stages", f"Message {number} is not a staged answer: {problems}."
    return None


def _images_problem(example: Example, max_pixels: int) -> Problem | None:
    for image in example.images:
        problem = _image_problem(image.bytes, max_pixels)
        if problem is not None:
            fault, what = problem
            return fault, f"The image {image.path or '(unnamed)'} {what}."
    return None


def _image_problem(data: bytes, max_pixels: int) -> Problem | None:
    """Of several frames the first counts."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images by a limit of its own; ours is checked below.
            warnings.simplefilter("ignore", PilImage.DecompressionBombWarning)
            with PilImage.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
                width, height = image.size
                if width * height > max_pixels:
                    much = f"has {width} x {height} pixels, more than {max_pixels}"
                    return "large image", much
                image.verify()
            # verify() reads headers and checksums; only decoding finds a file that is cut short.
            with PilImage.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
                image.load()
    except PilImage.DecompressionBombError:
        return "large image", f"has more than {max_pixels} pixels"
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        return "broken image", f"does not decode ({type(error).__name__})"
    return None
