"""What was decided about a set of candidates, and its entry in the trace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from stagebeam.inference.types import Usage
from stagebeam.search.propose import Proposal, stage_name
from stagebeam.search.trace import CandidateTrace, MatchTrace, StageTrace, UsageTrace
from stagebeam.stages import Stage, parse, stage_body


@dataclass(frozen=True, slots=True)
class Outcome:
    """The winner's index, and how it came to win."""

    winner: int
    matches: tuple[MatchTrace, ...] = ()
    merged_into: Mapping[int, int] = field(default_factory=dict)  # copy -> first of its kind
    usage: Usage = field(default_factory=Usage)  # the judge's part
    seconds: float = 0.0


def has_tags(stage: Stage | None, text: str) -> bool:
    """Whether `text` is exactly one whole `stage` (a whole staged answer where it is None)."""
    return parse(text).valid if stage is None else stage_body(stage, text) is not None


def record(stage: Stage | None, proposal: Proposal, outcome: Outcome) -> StageTrace:
    """The trace of one decision; its usage is the generator's call and the judge's rounds."""
    candidates = tuple(
        CandidateTrace(
            index=c.index,
            text=c.text,
            tokens=c.tokens,
            logprob=c.logprob,
            finish=c.finish,
            valid=has_tags(stage, c.text),
            merged_into=outcome.merged_into.get(c.index),
        )
        for c in proposal.candidates
    )
    return StageTrace(
        stage=stage_name(stage),
        candidates=candidates,
        matches=outcome.matches,
        winner=outcome.winner,
        usage=usage_trace(proposal.usage + outcome.usage, proposal.seconds + outcome.seconds),
    )


def winner_of(stage: StageTrace) -> CandidateTrace:
    """The candidate that was chosen."""
    return next(c for c in stage.candidates if c.index == stage.winner)


def usage_trace(usage: Usage, seconds: float) -> UsageTrace:
    return UsageTrace(**asdict(usage), seconds=seconds)


def total_usage(stages: Iterable[StageTrace]) -> Usage:
    """All counters of an answer, summed over its decisions."""
    return sum((Usage(**s.usage.model_dump(exclude={"seconds"})) for s in stages), Usage())
