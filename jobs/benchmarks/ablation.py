"""What the stages are worth: `python -m jobs.benchmarks.ablation`.

Three models of each seed, trained on the same scenes for as many steps (the paper's ablations,
arXiv 2411.10440, table 2): conclusions alone, all four stages without their tags, and the four
stages with them. Fresh scenes are asked greedily; of the model with stages, whose conclusions can
be told from the rest, also by majority, best-of-N and stage beam, the model its own judge.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table

from jobs.asking import run_plan
from jobs.benchmarks.figures import write_figures
from jobs.benchmarks.judge_models import GENERATOR_STEPS, ROWS, Folder, make_generator
from jobs.benchmarks.judges import (
    BATCH_ROWS,
    CONCURRENCY,
    KEPT,
    QUESTIONS,
    SEEDS,
    SETTINGS,
    N,
    Remembering,
    Rows,
    Run,
    engine_of,
    fresh,
)
from stagebeam.evaluation.ask import EngineAsk
from stagebeam.evaluation.scorers.conclusion import Outcome
from stagebeam.evaluation.scoring import correct
from stagebeam.evaluation.statistics import Interval, paired_difference, wilson
from stagebeam.inference.verdict import EngineJudge
from stagebeam.records import Example
from stagebeam.training.answers import Form

OUTPUT = Path("runs/bench/ablation.json")
FORMS: dict[Form, str] = {
    "conclusion": "direct answers",
    "untagged": "stages without tags",
    "stages": "four stages",
}
_PLAIN = (("greedy", 1),)
_SEARCHED = (*_PLAIN, ("majority", N), ("best_of_n", N), ("stage_beam", N))
_BASE = "stages greedy"  # what all is compared with


@dataclass(frozen=True, slots=True)
class Line:
    """One model by one method, over the questions of all seeds."""

    accuracy: float
    interval: Interval
    by_seed: dict[int, float]
    difference: float  # from four stages greedily
    difference_interval: Interval
    p: float


@dataclass(frozen=True, slots=True)
class Ablation:
    """What `ablation.json` holds, by form and method."""

    lines: dict[str, Line]
    questions: int
    steps: int
    rows_a_step: int
    torch: str
    transformers: str


def last_word(example: Example, text: str) -> Outcome:
    """Scores a reply without tags: a scene's conclusion is one word, the last one."""
    said = text.split()[-1] if text.split() else None
    return Outcome(said, float(correct(said, example)))


async def measure(seeds: Sequence[int], run: Run, console: Console) -> dict[str, Line]:
    """Every form by its methods."""
    right: dict[str, dict[int, list[bool]]] = {}
    for seed in seeds:
        examples = fresh(seed, run.questions)
        for form in FORMS:
            for method, rows in (await _asked(form, seed, run, examples, console)).items():
                answers = [row.correct for row in rows]
                right.setdefault(f"{form} {method}", {})[seed] = answers
    return {name: _line(by_seed, right[_BASE]) for name, by_seed in right.items()}


async def _asked(
    form: Form, seed: int, run: Run, examples: Sequence[Example], console: Console
) -> dict[str, Rows]:
    engine = engine_of(make_generator(Folder(run.root, seed), form))
    staged = form == "stages"
    judge = EngineJudge(engine, "likelihood", BATCH_ROWS) if staged else None
    try:
        return await run_plan(
            EngineAsk(Remembering(engine), form, SETTINGS, judge),
            _SEARCHED if staged else _PLAIN,
            examples,
            run.store(seed, f"ablation {form}"),
            CONCURRENCY,
            console,
            None if staged else last_word,
            of=f"seed {seed}, {FORMS[form]}: ",
        )
    finally:
        engine.close()


def _line(by_seed: dict[int, list[bool]], base: dict[int, list[bool]]) -> Line:
    right = [one for answers in by_seed.values() for one in answers]
    paired = paired_difference(right, [one for answers in base.values() for one in answers])
    return Line(
        accuracy=sum(right) / len(right),
        interval=wilson(sum(right), len(right)),
        by_seed={seed: sum(answers) / len(answers) for seed, answers in by_seed.items()},
        difference=paired.difference,
        difference_interval=paired.interval,
        p=paired.p,
    )


def table(measured: Ablation) -> Table:
    """A line for each model and method."""
    shown = Table(title=f"{measured.questions} fresh scenes of each seed")
    for column in ("learnt", "method", "right", "95 % interval", "by seed", "less four stages"):
        shown.add_column(column)
    for name, line in measured.lines.items():
        form, _, method = name.partition(" ")
        low, high = line.interval
        by_seed = ", ".join(f"{100 * share:.1f}" for share in line.by_seed.values())
        less = f"{100 * line.difference:+.1f} ({_points(line.difference_interval)})"
        learnt = next(title for key, title in FORMS.items() if key == form)
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
        shown.add_row(learnt, method, f"{100 * line.accuracy:.1f}", interval, by_seed, less)
    return shown


def _points(interval: Interval) -> str:
    return f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"


def main(
    seed: Annotated[list[int], typer.Option(help="Seeds to train and measure.")] = list(SEEDS),  # noqa: B006
    questions: Annotated[int, typer.Option(help="Fresh scenes for each seed.")] = QUESTIONS,
    kept: Annotated[Path, typer.Option(help="Where models and answers are kept.")] = KEPT,
    output: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")] = OUTPUT,
) -> None:
    """Train on direct answers, stages without tags and four stages, and ask fresh scenes."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    console = Console()
    lines = asyncio.run(measure(seed, Run(kept, SEEDS, questions), console))
    versions = torch.__version__, transformers.__version__
    measured = Ablation(lines, questions, GENERATOR_STEPS, ROWS, *versions)
    write_figures(measured, output, console, [table(measured)])


if __name__ == "__main__":
    typer.run(main)
