"""A benchmark's rows as questions to ask, and its figures from the answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from stagebeam.evaluation.answers import AnswerRow, Rule
from stagebeam.evaluation.benchmarks.benchmark import Benchmark, Figures, Row, Scored
from stagebeam.evaluation.scorers.conclusion import Mode, Outcome
from stagebeam.records import Example, Image, Message
from stagebeam.stages import conclusion


def load_rows(benchmark: Benchmark, folder: Path, count: int | None) -> dict[str, Row]:
    """The first `count` rows by index (all, if that is None). Raises ValueError as
    `Benchmark.rows` does, and if there is none or two have the same index."""
    found = list(islice(benchmark.rows(folder), count))
    if not found:
        raise ValueError(f"{folder / benchmark.file} holds no row.")
    index, times = Counter(row.index for row in found).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{folder / benchmark.file} holds {times} rows with the index {index}.")
    return {row.index: row for row in found}


def example_of(benchmark: Benchmark, row: Row) -> Example:
    """The row as it is asked. Its answer is for people to read: `rule_of` scores."""
    answer = row.cells.get("answer", "").strip()
    return Example(
        id=row.index,
        images=tuple(
            Image(data, f"{benchmark.name}:{row.index}:{number}")
            for number, data in enumerate(row.images)
        ),
        messages=(Message("user", benchmark.prompt(row)), Message("assistant", answer)),
        source=f"benchmark/{benchmark.name}",
        split="test",
        answer=answer,
        category=row.cells.get("category", "").strip() or None,
    )


def rule_of(benchmark: Benchmark, rows: Mapping[str, Row], mode: Mode) -> Rule:
    """Scores a reply to one of `rows` by the benchmark's own rule, where it has one: what a judge
    alone can tell is unmatched until it is reviewed."""
    score = benchmark.score

    def rule(example: Example, text: str) -> Outcome:
        if score is None:
            return Outcome(None, 0.0)
        return score(rows[example.id], as_given(text) if mode == "compat" else text, mode)

    return rule


def as_given(text: str) -> str:
    """What users of the service get as the reply, which `compat` reads: the conclusion, and the
    whole text where there is none."""
    said = conclusion(text)
    return text if said is None else said


def figures_of(
    benchmark: Benchmark,
    rows: Mapping[str, Row],
    answers: Sequence[AnswerRow],
    reviewed: Sequence[Outcome] = (),
) -> Figures:
    """From the outcomes of a judge's reviews, if there are any, else from those of the rule. A call
    that failed counts as a reply that says nothing."""
    outcomes = reviewed or [Outcome(a.said, a.score or 0.0) for a in answers]
    pairs = zip(answers, outcomes, strict=True)
    return benchmark.figures([Scored(rows[a.id], outcome) for a, outcome in pairs])
