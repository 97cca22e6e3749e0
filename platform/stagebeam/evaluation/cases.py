"""Which answers a person should read: traces with their question, image and gold answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stagebeam.evaluation.answers import AnswerRow
from stagebeam.records import Example
from stagebeam.search.trace import Trace


@dataclass(frozen=True, slots=True)
class Case:
    """One answer to show. `greedy_correct` is None where greedy was not asked."""

    trace: Trace
    images: tuple[bytes, ...]
    gold: str
    correct: bool
    greedy_correct: bool | None = None
    greedy_conclusion: str | None = None
    choices: tuple[str, ...] = ()
    category: str | None = None

    @property
    def rescued(self) -> bool:
        """Search is right where greedy is wrong."""
        return self.correct and self.greedy_correct is False

    @property
    def spoiled(self) -> bool:
        """Search is wrong where greedy is right."""
        return not self.correct and self.greedy_correct is True


def cases_of(
    rows: Sequence[AnswerRow],
    greedy: Sequence[AnswerRow],
    examples: Iterable[Example],
    traces: Mapping[str, Trace],
) -> list[Case]:
    """The answered questions of one method, each with what greedy said."""
    by_id = {example.id: example for example in examples}
    plain = {row.id: row for row in greedy}
    cases = []
    for row in rows:
        if row.trace_id is None:
            continue
        example, other = by_id[row.id], plain.get(row.id)
        cases.append(
            Case(
                trace=traces[row.trace_id],
                images=tuple(image.bytes for image in example.images),
                gold=row.gold,
                correct=row.correct,
                greedy_correct=other.correct if other else None,
                greedy_conclusion=other.conclusion if other else None,
                choices=example.choices,
                category=row.category,
            )
        )
    return cases


def choose(cases: Sequence[Case], count: int = 8) -> list[Case]:
    """The most telling ones, at most `count`: where search rescued, where it spoiled, where both
    are wrong, where both are right, in turn, and of each kind first those with most matches.
    """
    kinds: list[list[Case]] = [[], [], [], []]
    for case in sorted(cases, key=_matches, reverse=True):
        kind = 0 if case.rescued else 1 if case.spoiled else 3 if case.correct else 2
        kinds[kind].append(case)
    chosen: list[Case] = []
    while len(chosen) < count and any(kinds):
        for kind_cases in kinds:
            if kind_cases and len(chosen) < count:
                chosen.append(kind_cases.pop(0))
    return sorted(chosen, key=lambda case: (not case.rescued, not case.spoiled, case.correct))


def _matches(case: Case) -> int:
    return sum(len(stage.matches) for stage in case.trace.stages)
