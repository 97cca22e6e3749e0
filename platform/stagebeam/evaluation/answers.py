"""One row for each question that was asked, and the figures that follow from the rows."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median
from typing import Self

from pydantic import BaseModel, ConfigDict

from stagebeam.evaluation.claim import CLAIMED, JUDGE_ALONE, write_claim
from stagebeam.evaluation.question import digest_of
from stagebeam.evaluation.results import (
    SEARCHES,
    Accuracies,
    Comparison,
    Cost,
    MethodResult,
    Share,
)
from stagebeam.evaluation.scorers.conclusion import Outcome
from stagebeam.evaluation.scoring import correct
from stagebeam.evaluation.statistics import paired_difference, wilson
from stagebeam.records import Example
from stagebeam.search.trace import Trace, UsageTrace, read_traces, write_traces
from stagebeam.stages import conclusion

ANSWERS_FILE = "answers.jsonl"
TRACES_FILE = "traces.jsonl"

Rule = Callable[[Example, str], Outcome]  # of a question and the whole text of a reply


class AnswerRow(BaseModel):
    """What one question came to under one method. A failed call has an `error` and no trace."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    n: int
    id: str
    question: str  # `digest_of` it
    trace_id: str | None
    correct: bool
    conclusion: str | None
    gold: str
    category: str | None
    seconds: float  # wall clock that the asker saw
    usage: UsageTrace | None
    oracle: bool | None = None  # of whole answers: whether any candidate was right
    said: str | None = None  # under a benchmark's rule: what the reply was read as
    score: float | None = None  # under a benchmark's rule, from 0 to 1; right is 1
    error: str | None = None

    @classmethod
    def of(
        cls,
        method: str,
        n: int,
        example: Example,
        trace: Trace,
        seconds: float,
        rule: Rule | None = None,
    ) -> Self:
        """Score a trace against its example, by `rule` or by the conclusion alone."""
        score = rule or _by_conclusion
        outcome = score(example, trace.text)
        first = trace.stages[0] if trace.stages else None  # none where a limit left nothing
        whole = first.candidates if first is not None and first.stage == "ANSWER" else ()
        return cls(
            method=method,
            n=n,
            id=example.id,
            question=digest_of(example),
            trace_id=trace.id,
            correct=outcome.score == 1,
            conclusion=trace.conclusion,
            gold=example.answer or "",
            category=example.category,
            seconds=seconds,
            usage=trace.usage,
            oracle=any(score(example, c.text).score == 1 for c in whole) if whole else None,
            said=outcome.said if rule else None,
            score=outcome.score if rule else None,
        )

    @classmethod
    def failure(cls, method: str, n: int, example: Example, error: str, seconds: float) -> Self:
        return cls(
            method=method,
            n=n,
            id=example.id,
            question=digest_of(example),
            trace_id=None,
            correct=False,
            conclusion=None,
            gold=example.answer or "",
            category=example.category,
            seconds=seconds,
            usage=None,
            error=error,
        )


def _by_conclusion(example: Example, text: str) -> Outcome:
    said = conclusion(text)
    return Outcome(said, float(correct(said, example)))


Rows = Mapping[str, Sequence[AnswerRow]]  # by `name_of` a method


def name_of(method: str, n: int) -> str:
    """`greedy`, `judge_alone`, or a method with its N, `stage_beam@4`."""
    return method if method in ("greedy", JUDGE_ALONE) else f"{method}@{n}"


class AnswerStore:
    """`answers.jsonl` and `traces.jsonl` of one evaluation, appended to as answers arrive.

    Opened again, it knows what is finished; a failed question is not. `fresh` starts anew.
    """

    def __init__(self, folder: Path, *, fresh: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._answers, self._traces = folder / ANSWERS_FILE, folder / TRACES_FILE
        for path in (self._answers, self._traces):
            if fresh:
                path.unlink(missing_ok=True)
            cut_torn_line(path)
        self._rows: dict[tuple[str, int, str], AnswerRow] = {}
        for row in _read_rows(self._answers):
            self._rows[row.method, row.n, row.id] = row

    @property
    def empty(self) -> bool:
        return not self._rows

    def finished(self, method: str, n: int, example: Example) -> AnswerRow | None:
        """The answer to this very question, unless it failed."""
        row = self._rows.get((method, n, example.id))
        if row is None or row.error is not None or row.question != digest_of(example):
            return None
        return row

    def add(self, row: AnswerRow, trace: Trace | None) -> None:
        """Keep an answer. The trace goes first: a row in `answers.jsonl` always has its trace."""
        if trace is not None:
            write_traces(self._traces, [trace])
        with self._answers.open("a", encoding="utf-8") as lines:
            lines.write(row.model_dump_json() + "\n")
        self._rows[row.method, row.n, row.id] = row

    def traces(self) -> dict[str, Trace]:
        """Traces by their id."""
        if not self._traces.exists():
            return {}
        return {trace.id: trace for trace in read_traces(self._traces)}


def _read_rows(path: Path) -> Iterable[AnswerRow]:
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield AnswerRow.model_validate_json(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number} is not an answer: {error}") from None


def cut_torn_line(path: Path) -> None:
    """A run that was killed in mid-write leaves half a line; what it was about is asked again."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def method_result(rows: Sequence[AnswerRow]) -> MethodResult:
    """Accuracy and cost of one method. A failed question is wrong, and has no cost.

    Raises ValueError if there is no row, or none that was answered.
    """
    if not rows:
        raise ValueError("A method without answers has no accuracy.")
    failures = Counter(row.error for row in rows if row.error is not None)
    if failures.total() == len(rows):
        reason, _ = failures.most_common(1)[0]
        raise ValueError(f"All {len(rows)} questions to {rows[0].method} failed: {reason}.")
    return MethodResult(
        **share(rows).model_dump(),
        failed=failures.total(),
        failures=dict(failures),
        by_category=_by_category(rows),
        cost=_cost(rows),
    )


def share(rows: Sequence[AnswerRow]) -> Share:
    right = sum(row.correct for row in rows)
    return Share(
        accuracy=right / len(rows),
        interval=wilson(right, len(rows)),
        questions=len(rows),
        correct=right,
    )


def _by_category(rows: Sequence[AnswerRow]) -> dict[str, Share]:
    names = sorted({row.category for row in rows if row.category is not None})
    return {name: share([row for row in rows if row.category == name]) for name in names}


def _cost(rows: Sequence[AnswerRow]) -> Cost:
    answered = [(row.usage, row.seconds) for row in rows if row.usage is not None]
    usages = [usage for usage, _ in answered]
    return Cost(
        tokens=fmean(u.decode_tokens for u in usages),
        sequential_passes=fmean(u.sequential_passes for u in usages),
        judge_tokens=fmean(u.judge_tokens for u in usages),
        judge_calls=fmean(u.judge_calls for u in usages),
        prefill_tokens=fmean(u.prefill_tokens for u in usages),
        image_encodes=fmean(u.image_encodes for u in usages),
        seconds=median(seconds for _, seconds in answered),
    )


def oracle_result(best_of_n: Sequence[AnswerRow], cost: Cost) -> MethodResult:
    """What perfect choosing among best-of-N's candidates would reach, at the given cost."""
    rows = [row.model_copy(update={"correct": bool(row.oracle)}) for row in best_of_n]
    return method_result(rows).model_copy(update={"cost": cost})


def compare(first: str, second: str, rows: Rows) -> Comparison:
    """The paired difference of two methods. Raises ValueError if their questions differ."""
    ours = {row.id: row.correct for row in rows[first]}
    theirs = {row.id: row.correct for row in rows[second]}
    if ours.keys() != theirs.keys():
        raise ValueError(f"{first} and {second} were not asked the same questions.")
    paired = paired_difference(list(ours.values()), [theirs[id_] for id_ in ours])
    return Comparison(
        first=first,
        second=second,
        first_accuracy=sum(ours.values()) / len(ours),
        second_accuracy=sum(theirs.values()) / len(theirs),
        **asdict(paired),
    )


def summarise(rows: Rows) -> Accuracies:
    """Every figure that follows from the answers: accuracies, costs, comparisons, the claim.

    `rows` are keyed by `name_of` the method; greedy must be there. Raises ValueError as
    `method_result` and `compare` do.
    """
    results = {name: method_result(answers) for name, answers in rows.items()}
    by_method: dict[str, dict[str, MethodResult]] = {}
    for name, result in results.items():
        method, _, n = name.partition("@")
        by_method.setdefault(method, {})[n] = result
    searches = {method: by_method.get(method, {}) for method in SEARCHES}
    oracle = {
        n: oracle_result(rows[f"best_of_n@{n}"], _oracle_cost(result, searches["majority"].get(n)))
        for n, result in searches["best_of_n"].items()
    }
    comparisons = tuple(
        compare(f"{method}@{n}", other, rows)
        for method in CLAIMED
        for n in searches[method]
        for other in _compared_with(method, n)
        if other in rows
    )
    return Accuracies(
        greedy=results["greedy"],
        **searches,
        oracle=oracle,
        judge_alone=results.get(JUDGE_ALONE),
        comparisons=comparisons,
        claim=write_claim(comparisons),
    )


def _compared_with(method: str, n: str) -> list[str]:
    """Greedy, the methods that stand before it in tables at the same N, the judge's model alone."""
    before = SEARCHES[: SEARCHES.index(method)]
    return ["greedy", *(f"{other}@{n}" for other in before), JUDGE_ALONE]


def _oracle_cost(best_of_n: MethodResult, majority: MethodResult | None) -> Cost:
    """An oracle draws the same answers and asks no judge, which is what majority costs."""
    if majority is not None:
        return majority.cost
    return best_of_n.cost.model_copy(update={"judge_tokens": 0.0, "judge_calls": 0.0})
