"""Staged answers to questions whose standard answers are known.

One call with the images writes an assistant turn: it sees the earlier turns, the question, the
standard answer and what else the row says of it. A second call, text alone, compares the
conclusion with the standard answer. A reply that will not do is asked for again.

Earlier turns are shown with their whole staged answers, as they will stand before this turn when
the row is trained on: the teacher can refer to what was said, and does not contradict it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from stagebeam.annotate_config import AnnotateConfig
from stagebeam.data.annotate.checks import FaultyError, check_staged, read_verdict
from stagebeam.data.annotate.client import Call, Endpoint, attempt_temperature, draw_seed
from stagebeam.data.annotate.wording import Wording, fill
from stagebeam.records import Example, Message
from stagebeam.stages import conclusion

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Question:
    """One assistant turn that is to be written."""

    turn: int  # from 0, among the assistant's turns
    text: str
    standard_answer: str
    hints: tuple[str, ...]  # sentences


@dataclass(frozen=True, slots=True)
class StagedCalls:
    """The requests of a job."""

    config: AnnotateConfig
    wording: Wording
    seed: int

    def ask(
        self, example: Example, question: Question, earlier: tuple[Message, ...], attempt: int
    ) -> Call:
        """The request for one turn."""
        text = fill(
            self.wording.ask,
            question=question.text,
            standard_answer=question.standard_answer,
            hints=question.hints,
        )
        key = (example.id, question.turn, attempt, "ask")
        return Call(
            key=key,
            messages=(*earlier, Message("user", text)),
            images=tuple(image.bytes for image in example.images),
            temperature=attempt_temperature(self.config.teacher, attempt),
            max_tokens=self.config.teacher.max_tokens,
            seed=draw_seed(self.seed, *key),
        )

    def check(
        self, example: Example, question: Question, answer: str, attempt: int, again: int
    ) -> Call:
        """The request that compares; `again` counts unclear verdicts on the same answer."""
        assert self.wording.check is not None
        text = fill(
            self.wording.check,
            question=question.text,
            standard_answer=question.standard_answer,
            hints=question.hints,
            conclusion=conclusion(answer),
        )
        key = (example.id, question.turn, attempt, "check", again)
        return Call(
            key=key,
            messages=(Message("user", text),),
            images=(),
            temperature=attempt_temperature(self.config.checker or self.config.teacher, again),
            max_tokens=self.config.check_max_tokens,
            seed=draw_seed(self.seed, *key),
        )


@dataclass
class Writer:
    """Writes the rows of a job; `faults` counts the replies that would not do."""

    calls: StagedCalls
    attempts: int  # replies asked for, of either kind, before a row is given up
    teacher: Endpoint
    checker: Endpoint
    faults: Counter[str] = field(default_factory=Counter)

    async def staged(self, example: Example) -> Example:
        """The example with a staged answer in every assistant turn.

        Raises FaultyError if a turn cannot be written, StoppedError if the job ends.
        """
        earlier: tuple[Message, ...] = ()
        for question in questions(example):
            answer = await self._turn(example, question, earlier)
            earlier += (Message("user", question.text), Message("assistant", answer))
        return Example(
            id=example.id,
            images=example.images,
            messages=earlier,
            source=example.source,
            split=example.split,
            answer=example.answer,
            category=example.category,
            choices=example.choices,
        )

    async def _turn(
        self, example: Example, question: Question, earlier: tuple[Message, ...]
    ) -> str:
        asked = "\n".join(m.text for m in earlier if m.role == "user") + "\n" + question.text
        fault = None
        for attempt in range(self.attempts):
            call = self.calls.ask(example, question, earlier, attempt)
            try:
                answer = check_staged(await self.teacher.ask(call), asked)
                await self._check(example, question, answer, attempt)
                return answer
            except FaultyError as error:
                fault = error
                if error.fault in ("endpoint", "request refused", "unclear check"):
                    break
                self.faults[error.fault] += 1
        assert fault is not None
        raise FaultyError(fault.fault, f"Turn {question.turn + 1}: {fault.reason}")

    async def _check(self, example: Example, question: Question, answer: str, attempt: int) -> None:
        """Raises FaultyError unless the checker says that conclusion and standard answer agree."""
        for again in range(self.attempts):
            call = self.calls.check(example, question, answer, attempt, again)
            verdict = read_verdict(await self.checker.ask(call))
            if verdict is not None:
                break
            self.faults["unclear check"] += 1
        else:
            raise FaultyError("unclear check", "The checker says neither yes nor no.")
        if not verdict:
            raise FaultyError(
                "disagrees",
                f"The conclusion {str(conclusion(answer))[:100]!r} is not the standard answer "
                f"{question.standard_answer[:100]!r}.",
            )


def questions(example: Example) -> list[Question]:
    """The assistant turns of an example, which alternate with the user's.

    A turn that is staged already gives its conclusion. What else the row knows of its last turn,
    the options and the short answer, are hints.
    """
    found = []
    for turn in range(len(example.messages) // 2):
        user, assistant = example.messages[2 * turn : 2 * turn + 2]
        standard = conclusion(assistant.text) or assistant.text.strip()
        last = 2 * turn + 2 == len(example.messages)
        found.append(Question(turn, user.text, standard, _hints(example, standard) if last else ()))
    return found


def _hints(example: Example, standard: str) -> tuple[str, ...]:
    hints = []
    if example.choices:
        options = zip(_LETTERS, example.choices, strict=False)
        hints.append("The options are " + "; ".join(f"{a}: {text}" for a, text in options) + ".")
    if example.answer is not None and example.answer.strip() not in ("", standard):
        hints.append(f"In short, the answer is: {example.answer.strip()}.")
    return tuple(hints)
