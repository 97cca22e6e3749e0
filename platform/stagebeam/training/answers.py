"""What is learnt of a staged answer: the paper's ablations (arXiv 2411.10440, table 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from stagebeam.models.encoder import Arrays, RowEncoder
from stagebeam.records import Example, Message
from stagebeam.stages import conclusion, untagged

Form = Literal["stages", "untagged", "conclusion"]


def reworded(text: str, form: Form) -> str:
    """An assistant's turn in the form; one that is not staged stays as it is."""
    if form == "untagged":
        return untagged(text)
    return (conclusion(text) or text) if form == "conclusion" else text


@dataclass(frozen=True, slots=True)
class Reworder:
    """Examples with the assistant's turns in the form."""

    form: Form

    def __call__(self, example: Example) -> Example:
        turns = tuple(
            Message(m.role, reworded(m.text, self.form)) if m.role == "assistant" else m
            for m in example.messages
        )
        return replace(example, messages=turns)


@dataclass(frozen=True, slots=True)
class AnswerEncoder:
    """An encoder that sees the answers in the form, and may pack rows into longer ones."""

    encoder: RowEncoder
    reword: Reworder
    pack_to: int | None = None  # tokens

    def __call__(self, examples: Sequence[Example]) -> tuple[Arrays, dict[str, str]]:
        rows, refused = self.encoder.training_rows([self.reword(e) for e in examples])
        if self.pack_to is None:
            return self.encoder.collate(rows), refused
        return self.encoder.collate_packed(rows, self.pack_to), refused
