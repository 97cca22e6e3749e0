"""What a staged answer is (LLaVA-CoT, arXiv 2411.10440, section 3.1).

An answer is four stages, each once and in this order, with free white space between them:

    <SUMMARY> ... </SUMMARY> <CAPTION> ... </CAPTION> <REASONING> ... </REASONING>
    <CONCLUSION> ... </CONCLUSION>

`parse` reads model output and never raises: it returns the stages it found and what is wrong.
Text that a user sends is data and is never parsed; `find_tags` keeps tags out of the questions that
a model is trained on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """The four stages, in the order in which they are written."""

    SUMMARY = "SUMMARY"
    CAPTION = "CAPTION"
    REASONING = "REASONING"
    CONCLUSION = "CONCLUSION"

    @property
    def open_tag(self) -> str:
        return f"<{self.value}>"

    @property
    def close_tag(self) -> str:
        return f"</{self.value}>"


STAGES: tuple[Stage, ...] = tuple(Stage)
TAGS: tuple[str, ...] = tuple(tag for s in STAGES for tag in (s.open_tag, s.close_tag))

_NAMES = "|".join(s.value for s in STAGES)
_TAG = re.compile(rf"<(/?)({_NAMES})>")
# What a person or a hostile client may write for a tag: any case, spaces inside.
# The slash takes its own white space along: two neighbouring `\s*` would cost quadratic time.
_TAG_LIKE = re.compile(rf"<\s*(?:/\s*)?(?:{_NAMES})\s*>", re.IGNORECASE)


class Fault(StrEnum):
    """The ways in which a text fails to be a staged answer."""

    MISSING = "missing"  # the stage never occurs whole
    REPEATED = "repeated"  # the stage occurs again; the first one counts
    MISPLACED = "misplaced"  # the stage comes after one that should follow it
    UNCLOSED = "unclosed"  # opened, and not closed before the next tag or the end
    UNOPENED = "unopened"  # closed without having been opened
    EMPTY = "empty"  # opened and closed with nothing but white space inside
    STRAY_TEXT = "stray_text"  # words outside every stage


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong; `stage` is None for stray text."""

    fault: Fault
    stage: Stage | None = None

    def __str__(self) -> str:
        return self.fault.value if self.stage is None else f"{self.stage} {self.fault.value}"


@dataclass(frozen=True, slots=True)
class StagedAnswer:
    """The stages found in a text (bodies stripped of outer white space) and its problems."""

    bodies: Mapping[Stage, str]
    problems: tuple[Problem, ...]

    @property
    def valid(self) -> bool:
        return not self.problems

    @property
    def conclusion(self) -> str | None:
        return self.bodies.get(Stage.CONCLUSION)


def wrap(stage: Stage, body: str) -> str:
    """One stage with its tags.

    Raises ValueError if `body` is empty or carries a stage tag: it could not be read back.
    """
    if not body.strip():
        raise ValueError(f"The {stage} stage is empty.")
    if _TAG.search(body):
        raise ValueError(f"The body of the {stage} stage contains a stage tag.")
    return f"{stage.open_tag} {body.strip()} {stage.close_tag}"


def render(bodies: Mapping[Stage, str]) -> str:
    """The staged answer with these four bodies; `parse` gives them back.

    Raises ValueError if a stage is missing, empty, or has a tag in its body.
    """
    absent = [s.value for s in STAGES if s not in bodies]
    if absent:
        raise ValueError(f"A staged answer needs all four stages; missing: {', '.join(absent)}.")
    return " ".join(wrap(s, bodies[s]) for s in STAGES)


def parse(text: str) -> StagedAnswer:
    """Read model output; any text in, no exception. A stage's first whole occurrence counts."""
    bodies: dict[Stage, str] = {}
    problems: list[Problem] = []
    current: Stage | None = None
    cursor = 0  # end of the last tag

    def outside(piece: str) -> None:
        if piece.strip():
            problems.append(Problem(Fault.STRAY_TEXT))

    for match in _TAG.finditer(text):
        closing, stage = bool(match[1]), Stage(match[2])
        piece = text[cursor : match.start()]
        cursor = match.end()
        if current is None:
            outside(piece)
            if closing:
                problems.append(Problem(Fault.UNOPENED, stage))
            else:
                current = stage
        elif closing and stage is current:
            _keep(current, piece.strip(), bodies, problems)
            current = None
        else:
            problems.append(Problem(Fault.UNCLOSED, current))
            if closing:
                problems.append(Problem(Fault.UNOPENED, stage))
            current = None if closing else stage
    if current is None:
        outside(text[cursor:])
    else:
        problems.append(Problem(Fault.UNCLOSED, current))
    problems += [Problem(Fault.MISSING, s) for s in STAGES if s not in bodies]
    return StagedAnswer(bodies, tuple(problems))


def _keep(stage: Stage, body: str, bodies: dict[Stage, str], problems: list[Problem]) -> None:
    if stage in bodies:
        problems.append(Problem(Fault.REPEATED, stage))
        return
    if not body:
        problems.append(Problem(Fault.EMPTY, stage))
    if any(STAGES.index(found) > STAGES.index(stage) for found in bodies):
        problems.append(Problem(Fault.MISPLACED, stage))
    bodies[stage] = body


def conclusion(text: str) -> str | None:
    """The body of the conclusion, or None where there is no whole one."""
    return parse(text).conclusion


def stage_body(stage: Stage, text: str) -> str | None:
    """The body of a candidate that is exactly one whole `stage`, else None.

    The search uses it for its rule that a candidate without its tags loses.
    """
    tags = list(_TAG.finditer(text))
    if [t[0] for t in tags] != [stage.open_tag, stage.close_tag]:
        return None
    if text[: tags[0].start()].strip() or text[tags[1].end() :].strip():
        return None
    return text[tags[0].end() : tags[1].start()].strip() or None


def find_tags(text: str) -> tuple[str, ...]:
    """Stage tags, or what reads like one, in a text that must not have any (a user's message)."""
    return tuple(m[0] for m in _TAG_LIKE.finditer(text))


def untagged(text: str) -> str:
    """A staged answer's text without its tags, a line a stage; any other text as it is."""
    answer = parse(text)
    return "\n".join(answer.bodies[stage] for stage in STAGES) if answer.valid else text
