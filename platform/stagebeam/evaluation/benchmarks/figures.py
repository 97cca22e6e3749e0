"""How the scores of a benchmark's rows become its figures, each with a grouping of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from stagebeam.evaluation.benchmarks.benchmark import Figure, Figures, Row, Scored
from stagebeam.evaluation.matching import hallusionbench_scores
from stagebeam.evaluation.scorers.listed import listed

OVERALL = "Overall"
ROTATION = 1_000_000  # rows whose indices differ by a multiple of it are one question
_SAMPLES = 1000
_SEED = 0

NamesOf = Callable[[Row], Iterable[str]]


def column(*names: str) -> NamesOf:
    """What a row has in these columns, as far as it has something there."""
    return lambda row: [cell for name in names if (cell := row.cells.get(name, "").strip())]


def capabilities(row: Row) -> list[str]:
    """MMVet's `category` names every capability that a question takes, separated by commas."""
    return [name.strip() for name in row.cells.get("category", "").split(",") if name.strip()]


def task_and_skills(row: Row) -> list[str]:
    """MathVista's `task`, and its `skills`, which are a list as Python writes it, or one name."""
    skills = row.cells.get("skills", "").strip()
    names = (row.cells.get("task", "").strip(), *(listed(skills) or [skills]))
    return [name for name in names if name]


def means(groups_of: NamesOf) -> Callable[[Sequence[Scored]], Figures]:
    """The mean over all rows, and over those of each group; a row may be in several."""

    def figures(scored: Sequence[Scored]) -> Figures:
        return _means([(groups_of(one.row), one.outcome.score) for one in scored])

    return figures


def circular(groups_of: NamesOf) -> Callable[[Sequence[Scored]], Figures]:
    """The same over questions that are asked several times, with their options rotated: right only
    if every rotation is (MMBench, arXiv 2307.06281). A question's groups are its first row's."""

    def figures(scored: Sequence[Scored]) -> Figures:
        questions: dict[int, list[Scored]] = defaultdict(list)
        for one in scored:
            questions[_question(one.row)].append(one)
        return _means(
            [
                (groups_of(rotations[0].row), float(all(r.outcome.score == 1 for r in rotations)))
                for rotations in questions.values()
            ]
        )

    return figures


def _question(row: Row) -> int:
    try:
        return int(row.index) % ROTATION
    except ValueError:
        raise ValueError(f"The index {row.index!r} of a circular benchmark is no number.") from None


def macro(
    of: Callable[[Sequence[Scored]], Figures], kept: Sequence[str]
) -> Callable[[Sequence[Scored]], Figures]:
    """Those of the groups in `kept`, and over all of them the mean in which each counts alike.

    Raises ValueError where a group has no row.
    """

    def figures(scored: Sequence[Scored]) -> Figures:
        found = of(scored)
        absent = [name for name in kept if name not in found]
        if absent:
            raise ValueError(f"There is no row of {', '.join(absent)}.")
        overall = Figure(fmean(found[name].percent for name in kept), len(kept))
        return {OVERALL: overall, **{name: found[name] for name in kept}}

    return figures


def relative(groups_of: NamesOf) -> Callable[[Sequence[Scored]], Figures]:
    """Mean score over the mean of the reference answers' scores, in percent, over all rows and over
    those of each group. A row without a reference's score was not reviewed and is left out; where
    none was, there is no figure."""

    def figures(scored: Sequence[Scored]) -> Figures:
        groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for one in scored:
            if one.outcome.reference is not None:
                for name in dict.fromkeys((OVERALL, *groups_of(one.row))):
                    groups[name].append((one.outcome.score, one.outcome.reference))
        return {name: _ratio(groups[name]) for name in _in_order(groups)}

    return figures


def hallusion(scored: Sequence[Scored]) -> Figures:
    """The mean of HallusionBench's three accuracies; each of them, in all and by category."""
    rows = [{**one.row.cells, "score": one.outcome.score} for one in scored]
    splits = hallusionbench_scores(rows)
    overall = {OVERALL: Figure(fmean(splits["Overall"].values()), len(rows))}
    return overall | {
        f"{name}{'' if split == 'Overall' else f' {split}'}": Figure(percent, len(rows))
        for split, accuracies in splits.items()
        for name, percent in accuracies.items()
    }


def _means(units: Sequence[tuple[Iterable[str], float]]) -> Figures:
    """`units` are what counts alike: the names of its groups, and its score from 0 to 1."""
    if not units:
        raise ValueError("A benchmark without an answer has no score.")
    groups: Mapping[str, list[float]] = defaultdict(list)
    for names, score in units:
        for name in dict.fromkeys((OVERALL, *names)):
            groups[name].append(score)
    return {name: _mean(groups[name]) for name in _in_order(groups)}


def _in_order(names: Iterable[str]) -> list[str]:
    """ "Overall" first."""
    return sorted(names, key=lambda name: (name != OVERALL, name))


def _mean(scores: Sequence[float]) -> Figure:
    values = np.asarray(scores) * 100
    return _bootstrapped(len(values), lambda drawn: float(values[drawn].mean()))


def _ratio(pairs: Sequence[tuple[float, float]]) -> Figure:
    """Of two means, in percent; a pair is drawn as one."""
    values = np.asarray(pairs)  # [rows, 2]

    def percent(drawn: Any) -> float:
        ours, theirs = values[drawn].mean(axis=0)
        return float(100 * ours / theirs)

    return _bootstrapped(len(values), percent)


def _bootstrapped(count: int, percent: Callable[[Any], float]) -> Figure:
    """`percent` of all, and its interval over draws; it takes an index array of rows."""
    rng = np.random.default_rng(_SEED)
    drawn = [percent(rng.integers(count, size=count)) for _ in range(_SAMPLES)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Figure(percent(np.arange(count)), count, (float(low), float(high)))
