"""What happens while an answer is searched for, in order: the trace is built of this alone.

`visit` numbers the decisions of an answer from 0; one that was opened and never decided, because
a limit left no candidate, is not in the trace. Candidates come as the generator gives them, and
everything said about a decision comes before its StageDecided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stagebeam.search.trace import (
    CandidateTrace,
    Limit,
    MatchTrace,
    RetraceTrace,
    StageName,
    Trace,
    UsageTrace,
)


@dataclass(frozen=True, slots=True)
class StageOpened:
    """Candidates of a stage are asked for, `planned` of them at most."""

    visit: int
    stage: StageName
    planned: int


@dataclass(frozen=True, slots=True)
class CandidateFinished:
    """One proposal is there; its score and copies are known later."""

    visit: int
    candidate: CandidateTrace


@dataclass(frozen=True, slots=True)
class CandidatesScored:
    """A pointwise judge's scores, in nats, by the candidates' indices."""

    visit: int
    scores: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class MatchDecided:
    """Two candidates were compared."""

    visit: int
    match: MatchTrace


@dataclass(frozen=True, slots=True)
class StageDecided:
    """The winner's text is part of the answer from here on."""

    visit: int
    winner: int
    usage: UsageTrace
    merged_into: Mapping[int, int] = field(default_factory=dict)  # copy -> first of its kind


@dataclass(frozen=True, slots=True)
class Retraced:
    """No candidate of a stage was good enough: the stage before is drawn again."""

    retrace: RetraceTrace


@dataclass(frozen=True, slots=True)
class LimitReached:
    """The answer's limit of tokens or seconds cut the search short; told once."""

    limit: Limit


@dataclass(frozen=True, slots=True)
class Restarted:
    """All that was told is void, and is told anew. A search does not say this itself; who calls
    one at a distance does, when its machine is gone and another one takes over."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The last event."""

    trace: Trace


Event = (
    StageOpened
    | CandidateFinished
    | CandidatesScored
    | MatchDecided
    | StageDecided
    | Retraced
    | LimitReached
    | Restarted
    | Answered
)
