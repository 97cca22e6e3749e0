"""Calibrate `retrace`: `python -m jobs.calibrate RECIPE [--shards FOLDER] [--rows N] [--url URL]`.

The questions are answered without going back, and the scores that the judge gives the candidates
decide what is good enough in each stage. The recipe's `search.calibration` says where it goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from openai import AsyncOpenAI, OpenAIError
from rich.console import Console

from jobs.arguments import RecipeFile
from jobs.asking import endpoint_of
from jobs.cluster import ray_session
from jobs.errors import run_job
from jobs.progress import StepBar
from serve.app import required_serve, serving
from stagebeam.data.shards import iter_examples
from stagebeam.evaluation.ask import HttpAsk, reason_of
from stagebeam.evaluation.question import prompt_of
from stagebeam.recipe import Recipe, load_recipe
from stagebeam.records import Example
from stagebeam.search import SearchSettings, Trace
from stagebeam.search.calibration import Calibration, Row, calibrate, write_calibration
from stagebeam.search.seeds import question_key
from stagebeam.storage import Place, place_of

ROWS = 256
_CONCURRENCY = 16


def calibrate_recipe(
    recipe: Recipe,
    shards: Place | None = None,
    *,
    rows: int = ROWS,
    url: str | None = None,
    console: Console,
) -> Path:
    """Ask the first `rows` questions of `shards` (the training shards unless named), of the
    endpoint at `url` or of the recipe served here; returns the file's path.

    Questions on which the recipe is scored are passed over. Raises ValueError if the recipe does
    not say where the file goes, no other question is left, or every question fails.
    """
    path = recipe.search.calibration
    if path is None:
        raise ValueError(f"The recipe '{recipe.name}' has no search.calibration to write to.")
    folder = recipe.data.shards if shards is None else shards
    examples, left_out = fresh_questions(recipe, folder, rows)
    if left_out:
        console.print(f"{left_out} questions left out, on which the recipe is scored")
    named = [Row(id=e.id, digest=question_key(prompt_of(e))) for e in examples]
    with ExitStack() as stack:
        if url is None:
            config = required_serve(recipe)
            stack.enter_context(ray_session())
            url = stack.enter_context(serving(config, recipe.search))
        traces = asyncio.run(_ask_all(recipe, url, examples, console))
    answered = [(row, trace) for row, trace in zip(named, traces, strict=True) if trace]
    made = calibrate([trace for _, trace in answered], [row for row, _ in answered])
    write_calibration(made, path)
    console.print(_told(made), soft_wrap=True)
    return path


def fresh_questions(recipe: Recipe, folder: Place, rows: int) -> tuple[list[Example], int]:
    """The first `rows` questions that the recipe is not scored on, and how many were passed over.

    Raises ValueError if none is left.
    """
    scored: set[str] = set()
    if recipe.evaluation is not None and recipe.evaluation.shards.exists():
        scored = {question_key(prompt_of(e)) for e in iter_examples(recipe.evaluation.shards)}
    fresh: list[Example] = []
    left_out = 0
    for example in iter_examples(folder):
        if question_key(prompt_of(example)) in scored:
            left_out += 1
        else:
            fresh.append(example)
        if len(fresh) == rows:
            break
    if not fresh:
        raise ValueError(
            f"Every question in {folder} is one that '{recipe.name}' is scored on; calibrate on "
            "others."
        )
    return fresh, left_out


async def _ask_all(
    recipe: Recipe, url: str, examples: Sequence[Example], console: Console
) -> list[Trace | None]:
    """A trace for each example, None where the question failed."""
    endpoint = await endpoint_of(url)
    slots, done = asyncio.Semaphore(_CONCURRENCY), 0
    failures: list[str] = []
    settings = _settings(recipe)
    with StepBar(console, "calibrate", len(examples)) as bar:
        async with AsyncOpenAI(base_url=endpoint.base_url, api_key="none") as client:
            ask = HttpAsk(client, endpoint.model, settings)

            async def one(example: Example) -> Trace | None:
                nonlocal done
                async with slots:
                    try:
                        return await ask(example, settings.method, settings.n)
                    except OpenAIError as error:
                        failures.append(reason_of(error))
                        return None
                    finally:
                        done += 1
                        bar.update(done, f"{len(failures)} failed" if failures else "")

            answered = list(await asyncio.gather(*map(one, examples)))
    if len(failures) == len(examples):
        raise ValueError(f"All {done} questions to {url} failed: {failures[0]}")
    return answered


def _settings(recipe: Recipe) -> SearchSettings:
    """The same search without going back: every candidate is drawn and scored."""
    wanted = SearchSettings(**recipe.search.model_dump())
    return replace(
        wanted,
        method="retrace",
        candidates=max(2, wanted.n),
        max_retraces=0,
    )


def _told(made: Calibration) -> str:
    cutoffs = ", ".join(f"{name} {s.cutoff:.3f}" for name, s in made.stages.items())
    return f"Cutoffs from {len(made.rows)} questions: {cutoffs}"


def main(
    recipe: RecipeFile,
    shards: Annotated[
        str | None, typer.Option(help="Questions; without it, the training shards.")
    ] = None,
    rows: Annotated[int, typer.Option(help="How many of them.")] = ROWS,
    url: Annotated[str | None, typer.Option(help="Endpoint to ask; without it, serve.")] = None,
) -> None:
    """Find the scores that are good enough for the search that goes back."""

    def job() -> None:
        console = Console()
        folder = None if shards is None else place_of(shards)
        path = calibrate_recipe(load_recipe(recipe), folder, rows=rows, url=url, console=console)
        console.print(f"Calibration: {path}", soft_wrap=True)

    run_job(job)


if __name__ == "__main__":
    typer.run(main)
