"""The paper's tables in its own layout, its published figures beside those of our runs.

Ours are read from the output folders of evaluations: `benchmarks/NAME/figures.json`, which scores
as `docs/evaluation.md` says. What was not measured is a dash.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from stagebeam.evaluation import published
from stagebeam.evaluation.claim import label
from stagebeam.evaluation.tables import Table

NONE = "\N{EN DASH}"
_OVERALL = "Overall"
_COLUMNS = ("Model", *published.BENCHMARKS, "Average")


@dataclass(frozen=True, slots=True)
class Score:
    """One of our figures, and whatever keeps it from being held against a published one."""

    percent: float
    interval: tuple[float, float] | None
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """An evaluation: its recipe's name, and its overall figures by our benchmark and method."""

    name: str
    scores: dict[tuple[str, str], Score]

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(method for _, method in self.scores))


def read_run(folder: Path) -> Run:
    """The run in an evaluation's output folder. Raises ValueError where that has no figures, or a
    file in it cannot be read."""
    found = sorted(folder.glob("benchmarks/*/figures.json"))
    if not found:
        raise ValueError(f"There are no figures in {folder}/benchmarks/NAME/figures.json.")
    recipe = _recipe(folder)
    section = (recipe.get("evaluation") or {}).get("benchmarks") or {}
    scores: dict[tuple[str, str], Score] = {}
    for path in found:
        told = _json(path)
        try:
            for method, of_it in told["methods"].items():
                score = _score(told, of_it, section.get("rows"))
                scores[told["benchmark"], method] = score
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} does not hold a benchmark's figures: {error!r}.") from None
    return Run(str(recipe.get("name", folder.name)), scores)


def _score(told: dict[str, Any], of_it: dict[str, Any], rows: int | None) -> Score:
    overall = of_it["figures"][_OVERALL]
    faults = (
        "replies were read strictly" if told["mode"] != "compat" else None,
        "the file is not the published one" if told["published"] is False else None,
        f"only the first {rows} rows were asked" if rows else None,
        f"{of_it['failed']} calls failed" if of_it["failed"] else None,
    )
    interval = overall.get("interval")
    return Score(
        float(overall["percent"]),
        (float(interval[0]), float(interval[1])) if interval else None,
        tuple(fault for fault in faults if fault),
    )


def _recipe(folder: Path) -> dict[str, Any]:
    path = folder / "recipe.yaml"
    if not path.exists():
        return {}
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    return loaded if isinstance(loaded, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} does not hold a benchmark's figures.")
    return loaded


def paper_tables(runs: Sequence[Run]) -> list[Table]:
    """Main results, tag ablation and scaling over N; ours stand below the published rows."""
    marks = _Marks()
    return [
        Table(
            "Main results",
            _COLUMNS,
            (
                _row("Llama-3.2-11B-Vision-Instruct (published)", published.BASE),
                _row("LLaVA-CoT (published)", published.LLAVA_COT),
                _row("LLaVA-CoT with retracing (published)", published.RETRACING),
                *(row for run in runs for row in _main_rows(run, marks)),
            ),
            marks.note(),
        ),
        _ablation(runs),
        _scaling(runs),
    ]


def _main_rows(run: Run, marks: _Marks) -> list[tuple[str, ...]]:
    """Greedy answers, and the searches at the largest N of each."""
    largest: dict[str, int] = {}
    for method in run.methods:
        name, _, n = method.partition("@")
        if name in ("stage_beam", "retrace"):
            largest[name] = max(int(n), largest.get(name, 0))
    methods = ["greedy", *(f"{name}@{n}" for name, n in largest.items())]
    return [_ours(run, method, marks) for method in methods]


def _ablation(runs: Sequence[Run]) -> Table:
    marks = _Marks()
    return Table(
        "Structured tags",
        _COLUMNS,
        (
            _row("Llama-3.2-11B-Vision-Instruct (published)", published.BASE),
            _row("direct training (published)", published.DIRECT),
            _row("without tags (published)", published.UNTAGGED),
            _row("LLaVA-CoT (published)", published.LLAVA_COT),
            *(_ours(run, "greedy", marks) for run in runs),
        ),
        marks.note(),
    )


def _scaling(runs: Sequence[Run]) -> Table:
    """By method, a column for each run: the paper's rows, then what else was measured of ours."""
    marks = _Marks()
    name = published.BENCHMARKS["MMVet"]
    methods = list(published.SCALING)
    for run in runs:
        others = [m for m in run.methods if (name, m) in run.scores and m not in methods]
        methods += others
    rows = []
    for method in methods:
        known = published.SCALING.get(method)
        cells = (marks.cell(run.scores.get((name, method))) for run in runs)
        told = "no search, N = 1" if method == "greedy" else label(method)
        rows.append((told, NONE if known is None else f"{known:.1f}", *cells))
    return Table(
        "Scaling over N, on MMVet",
        ("Search", f"LLaVA-CoT ({published.SOURCE})", *(f"{run.name} (ours)" for run in runs)),
        tuple(rows),
        marks.note(),
    )


def _row(name: str, figures: Sequence[float]) -> tuple[str, ...]:
    return (name, *(f"{figure:.1f}" for figure in figures), f"{fmean(figures):.1f}")


def _ours(run: Run, method: str, marks: _Marks) -> tuple[str, ...]:
    scores = [run.scores.get((name, method)) for name in published.BENCHMARKS.values()]
    measured = [score.percent for score in scores if score is not None]
    average = f"{fmean(measured):.1f}" if len(measured) == len(scores) else NONE
    return (f"{run.name}, {label(method)} (ours)", *map(marks.cell, scores), average)


class _Marks:
    """Footnotes: a letter for each reason why a figure of ours is not one like the published."""

    def __init__(self) -> None:
        self._faults: dict[str, str] = {}

    def cell(self, score: Score | None) -> str:
        if score is None:
            return NONE
        letters = "".join(sorted(self._letter(fault) for fault in score.faults))
        text = f"{score.percent:.1f}"
        if score.interval is not None:
            text += f" ({score.interval[0]:.1f} to {score.interval[1]:.1f})"
        return f"{text} [{letters}]" if letters else text

    def _letter(self, fault: str) -> str:
        return self._faults.setdefault(fault, chr(ord("a") + len(self._faults)))

    def note(self) -> str:
        """To be asked for when all cells are there."""
        told = "; ".join(f"[{letter}] {fault}" for fault, letter in self._faults.items())
        return (
            f"Percent. Published figures are those of {published.SOURCE}, ours with 95 %"
            " bootstrap intervals; averages are means of the six columns."
            + (f" Not comparable as they stand: {told}." if told else "")
        )
