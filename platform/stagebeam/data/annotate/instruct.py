"""LLaVA's three kinds (arXiv 2304.08485, section 3), from captions and boxes by a text-only
teacher: conversation, detailed description, complex reasoning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stagebeam.annotate_config import AnnotateConfig
from stagebeam.data.annotate.checks import FaultyError, Turn, check_description, check_turns
from stagebeam.data.annotate.client import Call, Endpoint, attempt_temperature, draw_seed
from stagebeam.data.annotate.wording import Box, Wording, Worked, fill
from stagebeam.data.refusal import Refused
from stagebeam.data.sources.files import open_binary
from stagebeam.recipe import describe
from stagebeam.records import Message


class Captioned(BaseModel):
    """A line of the input: what is known of one image, in words and boxes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    image: str = Field(min_length=1, description="Path of the image; it is not opened.")
    captions: tuple[str, ...] = Field(min_length=1)
    boxes: tuple[Box, ...] = ()


def read_captions(path: Path) -> Iterator[Captioned | Refused]:
    """Every line, in order. Raises ValueError if the file is not there."""
    with open_binary(path, "captions") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path.name}:{number}"
            try:
                yield Captioned.model_validate_json(line)
            except ValidationError as error:
                yield Refused(place, "malformed row", f"The line is wrong: {describe(error)}.")


@dataclass(frozen=True, slots=True)
class InstructCalls:
    """The requests of a job."""

    config: AnnotateConfig
    wording: Wording
    seed: int

    def ask(self, row: Captioned, attempt: int) -> Call:
        """The request for one row."""
        key = (row.id, 0, attempt, "ask")
        return Call(
            key=key,
            messages=tuple(_messages(self.wording, row)),
            images=(),
            temperature=attempt_temperature(self.config.teacher, attempt),
            max_tokens=self.config.teacher.max_tokens,
            seed=draw_seed(self.seed, *key),
        )

    def question(self, row: Captioned) -> str:
        """For a description, one of the prompt's questions, evenly drawn."""
        drawn = draw_seed(self.seed, row.id, "question")
        return self.wording.questions[drawn % len(self.wording.questions)]


@dataclass
class Instructor:
    """Writes the rows of a job; `faults` counts the replies that would not do."""

    calls: InstructCalls
    attempts: int  # replies asked for before a row is given up
    teacher: Endpoint
    faults: Counter[str] = field(default_factory=Counter)

    async def conversation(self, row: Captioned) -> tuple[Turn, ...]:
        """Questions and answers about an image.

        Raises FaultyError if none can be had, StoppedError if the job ends.
        """
        fault = None
        for attempt in range(self.attempts):
            reply = await self.teacher.ask(self.calls.ask(row, attempt))
            try:
                match self.calls.config.kind:
                    case "detail":
                        return (Turn(self.calls.question(row), check_description(reply)),)
                    case "complex":
                        return check_turns(reply, most=1)
                return check_turns(reply)
            except FaultyError as error:
                fault = error
                self.faults[error.fault] += 1
        assert fault is not None
        raise fault


def _messages(wording: Wording, row: Captioned) -> Iterator[Message]:
    """The instructions lead the first message: some models know no system's."""
    rows: list[Worked | Captioned] = [*wording.examples, row]
    for number, shown in enumerate(rows):
        context = _context(shown.captions, shown.boxes)
        yield Message("user", fill(wording.ask, context=context) if number == 0 else context)
        if isinstance(shown, Worked):
            yield Message("assistant", shown.reply.strip())


def _context(captions: tuple[str, ...], boxes: tuple[Box, ...]) -> str:
    lines = [caption.strip() for caption in captions]
    if boxes:
        lines.append("")
        lines += [
            f"{box.label}: [{', '.join(f'{side:.3f}' for side in box.bbox)}]" for box in boxes
        ]
    return "\n".join(lines)
