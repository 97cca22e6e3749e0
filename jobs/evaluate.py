"""Evaluate a served endpoint: `python -m jobs.evaluate RECIPE [--url URL]`.

Every held-out question is asked greedily and by every search method at every N of the recipe.
Answers and traces are appended as they arrive, so an interrupted evaluation goes on where it
stopped. Without a URL the recipe is served here, and then its judge's model is asked alone.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from jobs.arguments import RecipeFile
from jobs.asking import (
    Engines,
    Measured,
    Source,
    ask_all,
    check_calibration,
    endpoint_of,
    measure_alone,
    section_of,
)
from jobs.cluster import ray_session
from jobs.errors import run_job
from jobs.public_benchmarks import chosen, measure_benchmarks
from jobs.repeat import repeat_of
from jobs.served_card import beside_alone, read_card, served_card
from jobs.tracked import track
from serve.app import required_serve, serving
from stagebeam.data.shards import iter_examples
from stagebeam.evaluation.answers import AnswerRow, Rows, Rule, summarise
from stagebeam.evaluation.cases import Case, cases_of
from stagebeam.evaluation.claim import JUDGE_ALONE, STAGE_BEAM
from stagebeam.evaluation.report import write_report
from stagebeam.evaluation.results import JudgeResult, Results
from stagebeam.evaluation.scoring import correct
from stagebeam.inference.load import load_generator
from stagebeam.local_copy import working_copy
from stagebeam.recipe import EvaluationConfig, Recipe, ServeConfig, load_recipe
from stagebeam.records import Example
from stagebeam.storage import Place, on_disk, place_of
from stagebeam.tracking import start_run

_VERSIONS = ("torch", "transformers", "ray", "deepspeed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a recipe is evaluated beside what it says itself, as on the command line."""

    url: str | None = None
    judge_url: str | None = None
    in_process: bool = False
    card: Path | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        if self.in_process and (self.url is not None or self.judge_url is not None):
            raise ValueError("An evaluation in this process asks no URL; leave one of them out.")

    @property
    def command(self) -> list[str]:
        """What follows the name of the recipe's file."""
        named = (("--url", self.url), ("--judge-url", self.judge_url), ("--card", self.card))
        words = [word for name, value in named if value is not None for word in (name, str(value))]
        return [*words, *(["--in-process"] if self.in_process else [])]


def load_questions(config: EvaluationConfig) -> list[Example]:
    """The held-out examples to ask.

    Raises ValueError if there are none, two have the same id, or one has no gold answer or one
    that names none of its choices.
    """
    examples = list(islice(iter_examples(config.shards), config.rows))
    if not examples:
        raise ValueError(f"The shards in {config.shards} hold no example.")
    for example in examples:
        correct(None, example)  # refuses a gold answer that cannot be scored against
    if len({e.id for e in examples}) < len(examples):
        raise ValueError(f"The shards in {config.shards} hold two examples with the same id.")
    return examples


def alone(config: ServeConfig) -> ServeConfig:
    """The same service with the judge's model in the generator's place."""
    return config.model_copy(update={"generator": config.judge.as_generator})


def telling_cases(measured: Measured, examples: Sequence[Example]) -> list[Case]:
    """Cases for the report: at the largest N those of stage beam, else of another search, else
    greedy's."""
    searched = [name.partition("@") for name in measured.rows if "@" in name]
    best = max(searched, key=lambda parts: (parts[0] == STAGE_BEAM, int(parts[2])), default=None)
    name = "greedy" if best is None else "".join(best)
    greedy = [] if name == "greedy" else measured.rows["greedy"]
    return cases_of(measured.rows[name], greedy, examples, measured.store.traces())


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        **{name: importlib.metadata.version(name) for name in _VERSIONS},
    }


@dataclass(frozen=True, slots=True)
class Found:
    """What was asked and measured, before any figure is taken from it."""

    measured: Measured
    judge: JudgeResult | None
    alone: Sequence[AnswerRow] | None = None

    @property
    def rows(self) -> Rows:
        rows = self.measured.rows
        return rows if self.alone is None else {**rows, JUDGE_ALONE: self.alone}


def evaluate(
    recipe: Recipe,
    *,
    url: str | None = None,
    judge_url: str | None = None,
    fresh: bool = False,
    in_process: bool = False,
    card: Path | None = None,
    console: Console,
) -> Place:
    """Measure, track and report; returns the report page's place.

    Where the recipe's output_dir is a URL, all files are made in a local copy of it. Without a
    `url` the recipe is served here, or its engines run in this process. `card` is a file with the
    judge's card; without it the judge is measured here. Raises ValueError as
    `jobs.asking.measure` and `jobs.served_card.read_card` do.
    """
    options = Options(url=url, judge_url=judge_url, in_process=in_process, card=card, fresh=fresh)
    config = section_of(recipe)
    examples = load_questions(config)
    check_calibration(recipe, examples)  # before a service is started for it
    if config.benchmarks is not None:
        chosen(config.benchmarks)
    with working_copy(config.output_dir) as folder:
        page = _evaluated(recipe, folder, examples, options, console)
        return config.output_dir / page.relative_to(folder)


def _evaluated(
    recipe: Recipe, folder: Path, examples: Sequence[Example], options: Options, console: Console
) -> Path:
    """The same, with all files in `folder`, which stands for the recipe's."""
    config = section_of(recipe)
    seconds: dict[str, float] = {}
    with _timed(seconds, "evaluate"):
        found = _find(_into(recipe, folder), examples, options, console)
    measured, rows = found.measured, found.rows
    accuracies = summarise(rows, found.judge)
    run = start_run(
        recipe.tracking,
        recipe.name,
        recipe.model_dump(mode="json"),
        folder,
        job_type="evaluate",
    )
    fingerprints = {"generator": measured.generator, "judge": measured.judge}
    again = ["--output-dir", f"{config.output_dir}-again", *options.command]
    results = Results(
        **accuracies.model_dump(),
        name=recipe.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        concurrency=config.concurrency,
        judge=None if found.judge is None else beside_alone(found.judge, accuracies),
        recipe=recipe.model_dump(mode="json"),
        fingerprints={"recipe": recipe.fingerprint(), **fingerprints},
        machine=machine(),
        wandb=run.describe(),
        seconds=seconds,
        repeat=repeat_of(recipe, config, ["stagebeam", "evaluate", *again], fingerprints, folder),
    )
    cases = telling_cases(measured, examples)
    track(run, results, rows, cases, measured.benchmarks)
    run.finish()
    return write_report(results, cases, folder)


def _find(recipe: Recipe, examples: Sequence[Example], options: Options, console: Console) -> Found:
    if options.in_process:
        return _ask_in_process(recipe, examples, options, console)
    if options.url is None:
        return _serve_and_ask(recipe, examples, options, console)
    found = asyncio.run(_ask(recipe, options.url, examples, options, console))
    if options.judge_url is None:
        return found
    return replace(found, alone=_ask_alone(recipe, options.judge_url, examples, options, console))


async def _ask(
    recipe: Recipe,
    source: str | Engines,
    examples: Sequence[Example],
    options: Options,
    console: Console,
) -> Found:
    """The held-out questions and the benchmarks of the recipe, of an endpoint at a URL or of
    engines; and its judge, unless its card is there."""
    config, fresh = section_of(recipe), options.fresh
    asked = await endpoint_of(source) if isinstance(source, str) else source
    # A card that is of no use is refused before anything is asked.
    given = None if options.card is None else read_card(options.card, asked.judge)
    measured = await ask_all(recipe, asked, examples, on_disk(config.output_dir), fresh, console)
    card = given or await served_card(recipe, asked, fresh, console)
    figures = await _ask_benchmarks(recipe, config, asked, fresh, console)
    return Found(replace(measured, benchmarks=figures), card)


async def _ask_benchmarks(
    recipe: Recipe, config: EvaluationConfig, source: Source, fresh: bool, console: Console
) -> dict[str, float]:
    if config.benchmarks is None:
        return {}

    async def ask(asked: Sequence[Example], folder: Path, rule: Rule, scored_by: str) -> Rows:
        check_calibration(recipe, asked)
        found = await ask_all(
            recipe, source, asked, folder, fresh, console, rule=rule, scored_by=scored_by
        )
        return found.rows

    return await measure_benchmarks(config.benchmarks, on_disk(config.output_dir), ask, console)


def _ask_alone(
    recipe: Recipe, url: str, examples: Sequence[Example], options: Options, console: Console
) -> list[AnswerRow]:
    return asyncio.run(measure_alone(recipe, url, examples, fresh=options.fresh, console=console))


def _serve_and_ask(
    recipe: Recipe, examples: Sequence[Example], options: Options, console: Console
) -> Found:
    """Serve the recipe, ask it, then serve the judge's model alone and ask that."""
    config = required_serve(recipe)
    with ray_session():
        with serving(config, recipe.search) as url:
            found = asyncio.run(_ask(recipe, url, examples, options, console))
        with serving(alone(config), recipe.search) as url:
            return replace(found, alone=_ask_alone(recipe, url, examples, options, console))


def _ask_in_process(
    recipe: Recipe, examples: Sequence[Example], options: Options, console: Console
) -> Found:
    """The recipe's engines, then the judge's model alone, one after the other."""
    config = required_serve(recipe)
    engines = Engines(config)
    try:
        found = asyncio.run(_ask(recipe, engines, examples, options, console))
    finally:
        engines.close()
    return replace(found, alone=judge_alone(recipe, config, examples, options.fresh, console))


def judge_alone(
    recipe: Recipe, config: ServeConfig, examples: Sequence[Example], fresh: bool, console: Console
) -> list[AnswerRow]:
    """The judge's model as a generator of its own, in this process."""
    generator = load_generator(config.judge.as_generator)
    own = (generator, generator.fingerprint)
    try:
        return asyncio.run(measure_alone(recipe, own, examples, fresh=fresh, console=console))
    finally:
        generator.close()


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - started


def main(
    recipe: RecipeFile,
    url: Annotated[str | None, typer.Option(help="Endpoint to ask; without it, serve.")] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="Endpoint that serves the judge's model as the generator.")
    ] = None,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Run the engines here, without Ray and HTTP.")
    ] = False,
    card: Annotated[
        Path | None, typer.Option(help="The judge's card, or a report.json that holds it.")
    ] = None,
    output_dir: Annotated[
        str | None, typer.Option(help="Instead of the recipe's evaluation.output_dir.")
    ] = None,
    fresh: Annotated[bool, typer.Option(help="Ask everything again.")] = False,
) -> None:
    """Ask held-out questions by every method; write report.json, report.md and report.html."""

    def job() -> None:
        console = Console()
        page = evaluate(
            _into(load_recipe(recipe), None if output_dir is None else place_of(output_dir)),
            url=url,
            judge_url=judge_url,
            in_process=in_process,
            card=card,
            fresh=fresh,
            console=console,
        )
        console.print(f"Report: {page}", soft_wrap=True)

    run_job(job)


def _into(recipe: Recipe, folder: Place | None) -> Recipe:
    if folder is None:
        return recipe
    config = section_of(recipe).model_copy(update={"output_dir": folder})
    return recipe.model_copy(update={"evaluation": config})


if __name__ == "__main__":
    typer.run(main)
