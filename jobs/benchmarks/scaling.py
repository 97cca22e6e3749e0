"""Accuracy over N for each judge: `python -m jobs.benchmarks.scaling`.

The models of one seed of the judge benchmark (`jobs.benchmarks.judges`), whose models and answers
are used where they are kept. A plot for each judge: majority, best-of-N and stage beam over N, with
the judge's model alone and the oracle drawn in.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.console import Console

from jobs.benchmarks.figures import write_figures
from jobs.benchmarks.judges import KEPT, KINDS, SEEDS, Rows, Run, Seed
from stagebeam.evaluation.answers import name_of
from stagebeam.evaluation.statistics import Interval, wilson
from stagebeam.source_config import SceneQuestions

OUTPUT = Path("runs/bench/scaling.json")
PLOT = Path("runs/bench/scaling.svg")
QUESTIONS = 512
CANDIDATES = (1, 2, 4, 8, 16)
_ABREAST = 4  # panels
_LINES = (
    ("stage_beam", "stage beam", "#e07b39", "o", "-"),
    ("best_of_n", "best of N", "#3b8fd1", "s", "-"),
    ("majority", "majority", "#3a9d78", "^", "-"),
    ("oracle", "oracle", "#9a8fb0", "D", "--"),
)


@dataclass(frozen=True, slots=True)
class Point:
    """A share of right answers."""

    accuracy: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class Scaling:
    """What `scaling.json` holds: by judge, by `method@N`."""

    judges: dict[str, dict[str, Point]]
    questions: int
    seed: int
    candidates: tuple[int, ...]
    torch: str
    transformers: str
    task: SceneQuestions = "mixed"


async def measure(
    names: Sequence[str], seed: int, run: Run, candidates: Sequence[int], console: Console
) -> dict[str, dict[str, Point]]:
    """Every judge at every N."""
    asked = Seed(seed, run, console)
    try:
        plain = await asked.plain(candidates)
        found = {}
        for name in names:
            rows: dict[str, Rows] = {**plain, **await asked.judged(name, candidates)}
            points = {
                key: _point([row.correct for row in answers]) for key, answers in rows.items()
            }
            for n in candidates:
                whole = rows[name_of("best_of_n", n)]
                points[f"oracle@{n}"] = _point([bool(row.oracle) for row in whole])
            alone = await asked.alone(name)
            best = max(alone, key=lambda answers: sum(row.correct for row in answers))
            found[name] = {**points, "judge_alone": _point([row.correct for row in best])}
        return found
    finally:
        asked.close()


def _point(right: Sequence[bool]) -> Point:
    return Point(sum(right) / len(right), wilson(sum(right), len(right)))


def draw(measured: Scaling, path: Path) -> None:
    """A panel for each judge, in the format of the path's ending."""
    columns = min(_ABREAST, len(measured.judges))
    rows = math.ceil(len(measured.judges) / columns)
    figure = Figure(figsize=(3.4 * columns, 0.6 + 3.4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for axes, (name, points) in zip(panels, measured.judges.items(), strict=False):
        _panel(axes, name, points, measured.candidates)
    for axes in panels[len(measured.judges) :]:
        axes.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel("right")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 * columns, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _panel(axes: Axes, name: str, points: dict[str, Point], candidates: tuple[int, ...]) -> None:
    for method, label, colour, marker, line in _LINES:
        shown = [points[name_of(method, n)] for n in candidates]
        ys = [point.accuracy for point in shown]
        errors = [
            [point.accuracy - point.interval[0] for point in shown],
            [point.interval[1] - point.accuracy for point in shown],
        ]
        axes.errorbar(
            candidates,
            ys,
            yerr=errors,
            color=colour,
            marker=marker,
            ls=line,
            capsize=2,
            label=label,
        )
    axes.axhline(points["greedy"].accuracy, color="#555555", lw=1, label="greedy")
    alone = points["judge_alone"].accuracy
    axes.axhline(alone, color="#cf5a8c", lw=1.2, ls=":", label="judge's model alone")
    axes.set_xscale("log", base=2)
    axes.set_xticks(candidates, [str(n) for n in candidates])
    axes.set_xlabel("N")
    axes.set_title(name)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", alpha=0.2)


def main(
    judge: Annotated[list[str], typer.Option(help=f"Judges: {', '.join(KINDS)}.")] = list(KINDS),  # noqa: B006
    seed: Annotated[int, typer.Option(help="Seed of the models and scenes.")] = 0,
    questions: Annotated[int, typer.Option(help="Fresh scenes.")] = QUESTIONS,
    most: Annotated[int, typer.Option(help="Draw N up to this.")] = CANDIDATES[-1],
    task: Annotated[SceneQuestions, typer.Option(help="What is asked about scenes.")] = "mixed",
    kept: Annotated[Path, typer.Option(help="Where models and answers are kept.")] = KEPT,
    output: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")] = OUTPUT,
    plot: Annotated[Path, typer.Option(help="Where the plot goes, as SVG or PNG.")] = PLOT,
) -> None:
    """Ask by every method at N = 1 to 16 under each judge, and draw it."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    console = Console()
    run = Run(kept, SEEDS, questions, task=task)
    run.make_models(judge, [seed])
    candidates = tuple(n for n in CANDIDATES if n <= most)
    found = asyncio.run(measure(judge, seed, run, candidates, console))
    versions = torch.__version__, transformers.__version__
    measured = Scaling(found, questions, seed, candidates, *versions, task)
    draw(measured, plot)
    write_figures(measured, output, console)


if __name__ == "__main__":
    typer.run(main)
