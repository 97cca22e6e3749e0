"""The whole path in one command: `python -m jobs.quickstart [RECIPE] [--full] [--fresh]`.

Scenes become shards, shards a generator, its mistakes a judge; both are served and asked by every
search method, and a report says what was measured. A finished step is not repeated.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jobs.asking import Measured, measure
from jobs.card import judge_result
from jobs.cluster import ray_session
from jobs.errors import run_job
from jobs.evaluate import judge_alone, load_questions, machine, telling_cases
from jobs.judge import train_judge
from jobs.prepare import prepare
from jobs.progress import StepBar
from jobs.repeat import repeat_of
from jobs.runs import tracked_run
from jobs.served_card import beside_alone
from jobs.tracked import track
from jobs.train import TrainSummary, train
from serve.app import serving
from stagebeam.data.manifest import Manifest
from stagebeam.evaluation.answers import AnswerRow, summarise
from stagebeam.evaluation.claim import JUDGE_ALONE
from stagebeam.evaluation.report import write_report
from stagebeam.evaluation.results import (
    JudgeResult,
    Results,
    ShardsResult,
    TrainResult,
)
from stagebeam.recipe import EvaluationConfig, Recipe, ServeConfig, load_recipe
from stagebeam.records import Example
from stagebeam.storage import on_disk
from stagebeam.tracking import Run

RECIPE = Path(__file__).parent / "recipes" / "quickstart.yaml"
FULL_CANDIDATES = (1, 2, 4, 8)
FULL_ROWS = 512


class Quickstart:
    """One run of the whole path, and the time that each step took."""

    def __init__(self, recipe: Recipe, run: Run, console: Console, *, fresh: bool) -> None:
        assert recipe.serve is not None and recipe.evaluation is not None
        self.recipe, self.run, self.console, self.fresh = recipe, run, console, fresh
        self.serve: ServeConfig = recipe.serve
        self.evaluation: EvaluationConfig = recipe.evaluation
        self.seconds: dict[str, float] = {}

    def __call__(self) -> Path:
        """Run every step in an initialised Ray session; returns the report's page."""
        with self._step("prepare", "Drawing scenes and writing shards"):
            manifest = self._prepare()
        with self._step("train", "Training the generator (Ray Train, DeepSpeed ZeRO)"):
            trained = train(self.recipe, self.run, self.console, fresh=self.fresh)
        with self._step("judge", "Training the judge on the generator's own samples"):
            judge = train_judge(self.recipe, self.run, self.console, fresh=self.fresh)
        with self._step("card", "Measuring the judge on pairs with known answers"):
            card = judge_result(self.recipe, self.serve.judge, judge, self.console)
        with self._step("evaluate", "Serving, and asking by every method"):
            examples = load_questions(self.evaluation)
            measured = self._measure(examples)
            alone = judge_alone(self.recipe, self.serve, examples, self.fresh, self.console)
        with self._step("report", "Writing the report"):
            return self._report(manifest, trained, card, measured, alone, examples)

    @contextmanager
    def _step(self, name: str, what: str) -> Iterator[None]:
        self.console.print(f"[bold]{len(self.seconds) + 1}/6 {what}[/bold]")
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began
        self.console.print(f"    done in {self.seconds[name]:.0f} s")

    def _prepare(self) -> Manifest:
        with StepBar(self.console, "rows", None) as bar:
            manifests = prepare(self.recipe, fresh=self.fresh, on_progress=bar.count)
        return manifests[self.recipe.data.shards]

    def _measure(self, examples: Sequence[Example]) -> Measured:
        with serving(self.serve, self.recipe.search) as url:
            self.console.print(f"    serving at {url}")
            return asyncio.run(
                measure(self.recipe, url, examples, fresh=self.fresh, console=self.console)
            )

    def _report(
        self,
        manifest: Manifest,
        trained: TrainSummary,
        judge: JudgeResult,
        measured: Measured,
        alone: list[AnswerRow],
        examples: Sequence[Example],
    ) -> Path:
        rows = {**measured.rows, JUDGE_ALONE: alone}
        accuracies = summarise(rows, judge)
        fingerprints = {"generator": measured.generator, "judge": measured.judge}
        command = ["stagebeam", "quickstart", "--fresh"]
        results = Results(
            **accuracies.model_dump(),
            name=self.recipe.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            concurrency=self.evaluation.concurrency,
            train=TrainResult(**trained.model_dump()),
            shards=ShardsResult(rows=manifest.rows, sources=manifest.sources),
            judge=beside_alone(judge, accuracies),
            recipe=self.recipe.model_dump(mode="json"),
            fingerprints={"recipe": self.recipe.fingerprint(), **fingerprints},
            machine=machine(),
            wandb=self.run.describe(),
            seconds=self.seconds,
            repeat=repeat_of(self.recipe, self.evaluation, command, fingerprints),
        )
        cases = telling_cases(measured, examples)
        track(self.run, results, rows, cases)
        return write_report(results, cases, on_disk(self.evaluation.output_dir))


def with_full_search(recipe: Recipe, evaluation: EvaluationConfig) -> Recipe:
    """The recipe with N = 1, 2, 4, 8 on 512 scenes."""
    more = {"candidates": FULL_CANDIDATES, "rows": FULL_ROWS}
    return recipe.model_copy(update={"evaluation": evaluation.model_copy(update=more)})


def main(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML).")] = RECIPE,
    full: Annotated[bool, typer.Option(help="N = 1, 2, 4, 8 on 512 scenes.")] = False,
    fresh: Annotated[bool, typer.Option(help="Do every step again.")] = False,
) -> None:
    """Draw data, train a generator and a judge, serve them, search, and report."""

    def job() -> None:
        loaded = load_recipe(recipe)
        if loaded.serve is None or loaded.evaluation is None:
            raise ValueError(f"The recipe {recipe} needs a serve and an evaluation section.")
        folder = on_disk(loaded.evaluation.output_dir)
        if full:
            loaded = with_full_search(loaded, loaded.evaluation)
        console = Console()
        began = time.perf_counter()
        with tracked_run(loaded, folder, "quickstart") as run, ray_session():
            page = Quickstart(loaded, run, console, fresh=fresh)()
        console.print(f"Report: {page}  ({time.perf_counter() - began:.0f} s)", soft_wrap=True)

    run_job(job)


if __name__ == "__main__":
    typer.run(main)
