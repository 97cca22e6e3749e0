"""What W&B is told of an evaluation: figures, tables, plots and a sample of traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stagebeam.evaluation.answers import Rows
from stagebeam.evaluation.cases import Case, choose
from stagebeam.evaluation.plots import (
    accuracy_against_passes,
    accuracy_against_seconds,
    accuracy_against_tokens,
    judge_by_stage,
)
from stagebeam.evaluation.report_tables import method_lines
from stagebeam.evaluation.results import (
    SEARCHES,
    Accuracies,
    Comparison,
    Fallbacks,
    JudgeResult,
    PairShare,
    Results,
)
from stagebeam.stages import STAGES, parse
from stagebeam.tracking import Picture, Run

TRACES = 32  # in the sample
N_METRIC = "scaling/N"
_COSTS = ("tokens", "sequential_passes", "judge_tokens", "seconds")
_ANSWERS = ("method", "id", "category", "gold", "conclusion", "correct", "seconds", "error")
_METHODS = ("method", "accuracy", "low", "high", "correct", "questions", "failed")
_COMPARISONS = ("first", "second", "difference", "low", "high", "p", "only_first", "only_second")
_CARD = ("kind", "pairs of", "accuracy", "low", "high", "correct", "pairs")
_TRACES = ("trace", "image", "question", "gold", "method", "conclusion", "correct", "candidates")


def track(
    run: Run,
    results: Results,
    rows: Rows,
    cases: Sequence[Case],
    benchmarks: Mapping[str, float] | None = None,
) -> None:
    """Log the whole evaluation; `benchmarks` are overall figures by flat names, in percent."""
    for pattern in ("accuracy/*", "benchmark/*"):
        run.define(pattern, summary="last")
    run.define(N_METRIC)
    run.define("scaling/*", step=N_METRIC)
    run.log({**metrics(results), **(benchmarks or {})})
    for point in scaling(results):
        run.log(point)
    run.table("answers", _ANSWERS, _answers(rows))
    run.table("methods", (*_METHODS, *_COSTS, *Fallbacks.model_fields), _methods(results))
    run.table("categories", ("category", *_METHODS[:-1]), _categories(results))
    run.table("comparisons", _COMPARISONS, _comparisons(results.comparisons))
    run.table("against_greedy", _COMPARISONS, _comparisons(results.against_greedy))
    plots = {
        "accuracy_against_tokens": accuracy_against_tokens(results),
        "accuracy_against_passes": accuracy_against_passes(results),
        "accuracy_against_seconds": accuracy_against_seconds(results),
    }
    if results.judge is not None:
        run.table("judge_card", _CARD, _card(results.judge))
        plots["judge_by_stage"] = judge_by_stage(results.judge.cards)
    for name, svg in plots.items():
        run.page(f"plots/{name}", svg)
    stages = tuple(stage.value for stage in STAGES)
    sample = [_trace(case) for case in choose(cases, TRACES)]
    run.table("traces", (*_TRACES, *stages), sample)


def metrics(accuracies: Accuracies) -> dict[str, float]:
    """Accuracies and costs by flat names."""
    flat: dict[str, float] = {}
    for name, result in method_lines(accuracies):
        flat[f"accuracy/{name}"] = result.accuracy
        for cost in ("tokens", "sequential_passes", "seconds"):
            flat[f"{cost}/{name}"] = getattr(result.cost, cost)
    return flat


def scaling(accuracies: Accuracies) -> list[dict[str, float]]:
    """For each N the accuracy of every method, a curve over N there; greedy is at 1."""
    points: dict[int, dict[str, float]] = {1: {"scaling/greedy": accuracies.greedy.accuracy}}
    for method in (*SEARCHES, "oracle"):
        for n, result in getattr(accuracies, method).items():
            points.setdefault(int(n), {})[f"scaling/{method}"] = result.accuracy
    return [{N_METRIC: float(n), **points[n]} for n in sorted(points)]


def _answers(rows: Rows) -> list[list[Any]]:
    return [
        [name, r.id, r.category, r.gold, r.conclusion, r.correct, r.seconds, r.error]
        for name, answers in rows.items()
        for r in answers
    ]


def _methods(results: Accuracies) -> list[list[Any]]:
    return [
        [
            *(name, m.accuracy, *m.interval, m.correct, m.questions, m.failed),
            *(getattr(m.cost, cost) for cost in _COSTS),
            *(m.fallbacks and getattr(m.fallbacks, kind) for kind in Fallbacks.model_fields),
        ]
        for name, m in method_lines(results)
    ]


def _categories(results: Accuracies) -> list[list[Any]]:
    return [
        [category, name, share.accuracy, *share.interval, share.correct, share.questions]
        for name, m in method_lines(results)
        for category, share in m.by_category.items()
    ]


def _comparisons(comparisons: Sequence[Comparison]) -> list[list[Any]]:
    return [
        [c.first, c.second, c.difference, *c.interval, c.p, c.only_first, c.only_second]
        for c in comparisons
    ]


def _card(judge: JudgeResult) -> list[list[Any]]:
    parts: list[tuple[str, str, PairShare]] = []
    for kind, card in judge.cards.items():
        parts.append((kind, "all", card))
        parts += [(kind, stage, share) for stage, share in card.by_stage.items()]
        parts += [(kind, f"questions: {q}", share) for q, share in card.by_category.items()]
    return [
        [kind, of, share.accuracy, *share.interval, share.correct, share.pairs]
        for kind, of, share in parts
    ]


def _trace(case: Case) -> list[Any]:
    trace = case.trace
    bodies = parse(trace.text).bodies
    return [
        trace.id,
        Picture(case.images[0]) if case.images else None,
        trace.messages[-1].text if trace.messages else "",
        case.gold,
        trace.method,
        trace.conclusion,
        case.correct,
        str(trace.candidates),
        *(bodies.get(stage) for stage in STAGES),
    ]
