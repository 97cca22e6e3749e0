"""Events become the decisions of a trace: whoever folds the same events sees the same record."""

from __future__ import annotations

from dataclasses import dataclass, field

from stagebeam.search.events import (
    CandidateFinished,
    CandidatesScored,
    Event,
    LimitReached,
    MatchDecided,
    Restarted,
    Retraced,
    StageDecided,
    StageOpened,
)
from stagebeam.search.trace import CandidateTrace, Limit, MatchTrace, RetraceTrace, StageTrace


@dataclass(slots=True)
class OpenStage:
    """A decision that is being made."""

    opened: StageOpened
    candidates: dict[int, CandidateTrace] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    matches: list[MatchTrace] = field(default_factory=list)

    def closed(self, decided: StageDecided) -> StageTrace:
        """Candidates by index, whatever the order in which they came."""
        candidates = tuple(
            self.candidates[index].model_copy(
                update={
                    "merged_into": decided.merged_into.get(index),
                    "score": self.scores.get(index),
                }
            )
            for index in sorted(self.candidates)
        )
        return StageTrace(
            stage=self.opened.stage,
            planned=self.opened.planned,
            candidates=candidates,
            matches=tuple(self.matches),
            winner=decided.winner,
            usage=decided.usage,
        )


class Fold:
    """Takes events in order; `stages` are the decisions made so far, `open` those being made."""

    def __init__(self) -> None:
        self.stages: list[StageTrace] = []
        self.retraces: list[RetraceTrace] = []
        self.limited: Limit | None = None
        self.open: dict[int, OpenStage] = {}  # by visit

    def add(self, event: Event) -> StageTrace | None:
        """The decision that this event completes, if it does."""
        match event:
            case StageOpened():
                self.open[event.visit] = OpenStage(event)
            case CandidateFinished():
                self.open[event.visit].candidates[event.candidate.index] = event.candidate
            case CandidatesScored():
                self.open[event.visit].scores.update(event.scores)
            case MatchDecided():
                self.open[event.visit].matches.append(event.match)
            case Retraced():
                self.retraces.append(event.retrace)
            case LimitReached():
                self.limited = event.limit
            case Restarted():
                self.stages, self.retraces, self.limited, self.open = [], [], None, {}
            case StageDecided():
                decided = self.open.pop(event.visit).closed(event)
                self.stages.append(decided)
                return decided
        return None

    @property
    def text(self) -> str:
        """The winners' texts put together."""
        return "".join(winner_of(stage).text for stage in self.stages)


def winner_of(stage: StageTrace) -> CandidateTrace:
    """The candidate that was chosen."""
    return next(c for c in stage.candidates if c.index == stage.winner)
