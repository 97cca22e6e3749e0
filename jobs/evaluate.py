"""Evaluate a served endpoint: `python -m jobs.evaluate RECIPE [--url URL]`.

Every held-out question is asked greedily and by every search method at every N of the recipe.
Answers and traces are appended as they arrive, so an interrupted evaluation goes on where it
stopped. Without a URL the recipe is served here, and then its judge's model is asked alone.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from openai import AsyncOpenAI
from rich.console import Console

from jobs.cluster import ray_session
from jobs.errors import run_job
from jobs.progress import StepBar
from jobs.public_benchmarks import chosen, measure_benchmarks
from serve.app import required_serve, serving
from stagebeam.data.shards import iter_examples
from stagebeam.evaluation.answers import AnswerRow, AnswerStore, Rows, Rule, name_of, summarise
from stagebeam.evaluation.ask import Ask, GeneratorAsk, HttpAsk, run_method
from stagebeam.evaluation.cases import Case, cases_of
from stagebeam.evaluation.claim import JUDGE_ALONE, STAGE_BEAM, label
from stagebeam.evaluation.question import prompt_of
from stagebeam.evaluation.report import method_lines, write_report
from stagebeam.evaluation.results import Accuracies, Results
from stagebeam.evaluation.scoring import correct
from stagebeam.inference.types import Generator
from stagebeam.recipe import EvaluationConfig, Recipe, ServeConfig, load_recipe
from stagebeam.records import Example
from stagebeam.search import SearchSettings
from stagebeam.search.calibration import read_calibration
from stagebeam.search.seeds import question_key
from stagebeam.tracking import start_run

IDENTITY_FILE = "identity.json"
ANSWER_COLUMNS = (
    "method",
    "id",
    "category",
    "gold",
    "conclusion",
    "correct",
    "seconds",
    "error",
)
_VERSIONS = ("torch", "transformers", "ray", "deepspeed")


@dataclass(frozen=True, slots=True)
class Measured:
    """Every answer by method (`name_of` it), and the fingerprints of what gave them."""

    rows: dict[str, list[AnswerRow]]
    store: AnswerStore
    generator: str
    judge: str
    benchmarks: dict[str, float] = field(default_factory=dict)  # overall figures, percent


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


def check_calibration(recipe: Recipe, examples: Sequence[Example]) -> None:
    """Raises ValueError if `retrace` is to be asked and there is no calibration, or a question is
    among those that the search was calibrated on."""
    path = recipe.search.calibration
    if path is None:
        if _goes_back(recipe):
            raise ValueError(
                f"The recipe '{recipe.name}' evaluates retrace and has no search.calibration; "
                "name a file and make it with `stagebeam calibrate`."
            )
        return
    if not path.exists() and not _goes_back(recipe):
        return  # nothing that is asked needs it
    digests = {question_key(prompt_of(example)): example.id for example in examples}
    read_calibration(path).check_rows(digests, f"the evaluation of '{recipe.name}'")


async def measure(
    recipe: Recipe,
    url: str,
    examples: Sequence[Example],
    *,
    fresh: bool = False,
    console: Console,
) -> Measured:
    """Ask the endpoint at `url` every example by every method; resumes what is unfinished.

    Give `rows` (and those of `measure_alone`) to `evaluation.answers.summarise` for the figures.
    Raises ValueError if the endpoint does not answer, `retrace` is asked of other models than it
    was calibrated on, or the output folder holds answers of other models or settings and `fresh`
    is not set.
    """
    config = _section(recipe)
    check_calibration(recipe, examples)
    endpoint = await endpoint_of(url)
    return await ask_all(recipe, endpoint, examples, config.output_dir, fresh, console)


async def ask_all(
    recipe: Recipe,
    endpoint: Endpoint,
    examples: Sequence[Example],
    folder: Path,
    fresh: bool,
    console: Console,
    *,
    rule: Rule | None = None,
    scored_by: str | None = None,
) -> Measured:
    """Every example by every method of the recipe; answers and traces go to `folder`, which must
    hold no others. `scored_by` names the `rule`. Raises ValueError as `measure` does."""
    config = _section(recipe)
    calibration = _calibration(recipe, endpoint)
    identity = _identity(recipe, endpoint.generator, endpoint.judge, calibration)
    if scored_by is not None:
        identity["rule"] = scored_by
    store = _store(folder, identity, fresh)
    plan = [("greedy", 1)] + [(m, n) for n in config.candidates for m in config.methods]
    async with AsyncOpenAI(base_url=endpoint.base_url, api_key="none") as client:
        ask = HttpAsk(client, endpoint.model, _settings(recipe), calibration)
        rows = await _run(ask, plan, examples, store, config.concurrency, console, rule)
    return Measured(rows, store, endpoint.generator, endpoint.judge)


async def measure_alone(
    recipe: Recipe,
    source: str | tuple[Generator, str],
    examples: Sequence[Example],
    *,
    fresh: bool = False,
    console: Console,
) -> list[AnswerRow]:
    """What the judge's own model reaches: its greedy answers, as rows named `judge_alone`.

    `source` is the URL of an endpoint that serves it as the generator, or such a generator and
    its fingerprint. Files go to `judge_alone/` in the output folder. Raises as `measure` does.
    """
    config = _section(recipe)
    folder, plan = config.output_dir / JUDGE_ALONE, [(JUDGE_ALONE, 1)]
    settings = _settings(recipe)
    if not isinstance(source, str):
        generator, fingerprint = source
        store = _store(folder, _identity(recipe, fingerprint, None), fresh)
        ask: Ask = GeneratorAsk(generator, fingerprint, settings)
        return (await _run(ask, plan, examples, store, config.concurrency, console))[JUDGE_ALONE]
    endpoint = await endpoint_of(source)
    store = _store(folder, _identity(recipe, endpoint.generator, None), fresh)
    async with AsyncOpenAI(base_url=endpoint.base_url, api_key="none") as client:
        ask = HttpAsk(client, endpoint.model, settings)
        return (await _run(ask, plan, examples, store, config.concurrency, console))[JUDGE_ALONE]


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


def metrics(accuracies: Accuracies) -> dict[str, float]:
    """Accuracies and costs by flat names, for tracking."""
    flat: dict[str, float] = {}
    for name, result in method_lines(accuracies):
        flat[f"accuracy/{name}"] = result.accuracy
        flat[f"tokens/{name}"] = result.cost.tokens
        flat[f"sequential_passes/{name}"] = result.cost.sequential_passes
        flat[f"seconds/{name}"] = result.cost.seconds
    return flat


def answer_table(rows: Rows) -> list[list[Any]]:
    """One line an answer, under ANSWER_COLUMNS, for tracking."""
    return [
        [name, r.id, r.category, r.gold, r.conclusion, r.correct, r.seconds, r.error]
        for name, answers in rows.items()
        for r in answers
    ]


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        **{name: importlib.metadata.version(name) for name in _VERSIONS},
    }


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A served recipe: where it answers, its model's name and both fingerprints."""

    base_url: str
    model: str
    generator: str
    judge: str


async def endpoint_of(url: str) -> Endpoint:
    """Raises ValueError if nothing of ours answers at `url`."""
    try:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            health = (await client.get("/healthz")).raise_for_status().json()
            models = (await client.get("/v1/models")).raise_for_status().json()
        model = models["data"][0]["id"]
        return Endpoint(f"{url.rstrip('/')}/v1", model, health["generator"], health["judge"])
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ValueError(f"{url} does not answer: {error}.") from None
    except (KeyError, IndexError, TypeError, ValueError):
        raise ValueError(f"What answers at {url} is not a Stagebeam service.") from None


def _section(recipe: Recipe) -> EvaluationConfig:
    if recipe.evaluation is None:
        raise ValueError(f"The recipe {recipe.name} has no evaluation section.")
    return recipe.evaluation


def _settings(recipe: Recipe) -> SearchSettings:
    return SearchSettings(**recipe.search.model_dump())


def _goes_back(recipe: Recipe) -> bool:
    """Whether the evaluation asks by `retrace` with cutoffs."""
    return "retrace" in _section(recipe).methods and recipe.search.max_retraces > 0


def _calibration(recipe: Recipe, endpoint: Endpoint) -> str | None:
    """Fingerprint of the cutoffs that `retrace` must search with; None where it is not asked.

    Raises ValueError where there are none, or they are other models'.
    """
    if not _goes_back(recipe) or recipe.search.calibration is None:
        return None
    calibration = read_calibration(recipe.search.calibration)
    calibration.check_models(endpoint.generator, endpoint.judge)
    return calibration.fingerprint


def _identity(
    recipe: Recipe, generator: str, judge: str | None, calibration: str | None = None
) -> dict[str, Any]:
    """What the answers of one folder must share; the cutoffs count once `retrace` was asked."""
    settings = recipe.search.model_dump(
        mode="json", exclude={"method", "candidates", "calibration"}
    )
    shared = {"generator": generator, "judge": judge, "search": settings}
    return shared if calibration is None else {**shared, "calibration": calibration}


def _store(folder: Path, identity: dict[str, Any], fresh: bool) -> AnswerStore:
    store = AnswerStore(folder, fresh=fresh)
    path = folder / IDENTITY_FILE
    before: dict[str, Any] = {}
    if not store.empty:
        before = json.loads(path.read_text(encoding="utf-8"))
        before.get("search", {}).pop("calibration", None)  # older files name its path there
        changed = [key for key in identity if before.get(key, identity[key]) != identity[key]]
        if changed:
            raise ValueError(
                f"{folder} holds answers with another {' and '.join(changed)};"
                " take another output_dir, or --fresh to ask everything again."
            )
    path.write_text(json.dumps({**before, **identity}, indent=2) + "\n", encoding="utf-8")
    return store


async def _run(
    ask: Ask,
    plan: Sequence[tuple[str, int]],
    examples: Sequence[Example],
    store: AnswerStore,
    concurrency: int,
    console: Console,
    rule: Rule | None = None,
) -> dict[str, list[AnswerRow]]:
    rows: dict[str, list[AnswerRow]] = {}
    for method, n in plan:
        name = name_of(method, n)
        with StepBar(console, label(name), len(examples)) as bar:
            rows[name] = await run_method(
                ask,
                examples,
                method,
                n,
                store,
                concurrency=concurrency,
                rule=rule,
                on_answer=_shown_on(bar),
            )
    return rows


def _shown_on(bar: StepBar) -> Callable[[AnswerRow], None]:
    done, right, failed = 0, 0, 0

    def on_answer(row: AnswerRow) -> None:
        nonlocal done, right, failed
        done, right, failed = done + 1, right + row.correct, failed + (row.error is not None)
        bar.update(done, f"{right / done:.1%} right" + (f", {failed} failed" if failed else ""))

    return on_answer


def evaluate(
    recipe: Recipe,
    *,
    url: str | None = None,
    judge_url: str | None = None,
    fresh: bool = False,
    console: Console,
) -> Path:
    """Measure, track and report; returns the report page's path. Raises ValueError as `measure`."""
    config = _section(recipe)
    examples = load_questions(config)
    check_calibration(recipe, examples)  # before a service is started for it
    if config.benchmarks is not None:
        chosen(config.benchmarks)
    seconds: dict[str, float] = {}
    with _timed(seconds, "evaluate"):
        if url is None:
            measured, rows = _serve_and_measure(recipe, examples, fresh, console)
        else:
            measured = asyncio.run(_measure_all(recipe, url, examples, fresh, console))
            rows = measured.rows
            if judge_url is not None:
                rows = rows | {
                    JUDGE_ALONE: asyncio.run(
                        measure_alone(recipe, judge_url, examples, fresh=fresh, console=console)
                    )
                }
    accuracies = summarise(rows)
    run = start_run(
        recipe.tracking,
        recipe.name,
        recipe.model_dump(mode="json"),
        config.output_dir,
        job_type="evaluate",
    )
    run.log({**metrics(accuracies), **measured.benchmarks})
    run.table("answers", ANSWER_COLUMNS, answer_table(rows))
    run.finish()
    results = Results(
        **accuracies.model_dump(),
        name=recipe.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        concurrency=config.concurrency,
        recipe=recipe.model_dump(mode="json"),
        fingerprints={
            "recipe": recipe.fingerprint(),
            "generator": measured.generator,
            "judge": measured.judge,
        },
        machine=machine(),
        wandb=run.describe(),
        seconds=seconds,
    )
    return write_report(results, telling_cases(measured, examples), config.output_dir)


async def _measure_all(
    recipe: Recipe, url: str, examples: Sequence[Example], fresh: bool, console: Console
) -> Measured:
    """The held-out questions, and the benchmarks of the recipe."""
    measured = await measure(recipe, url, examples, fresh=fresh, console=console)
    config = _section(recipe)
    if config.benchmarks is None:
        return measured
    endpoint = await endpoint_of(url)

    async def ask(asked: Sequence[Example], folder: Path, rule: Rule, scored_by: str) -> Rows:
        check_calibration(recipe, asked)
        found = await ask_all(
            recipe, endpoint, asked, folder, fresh, console, rule=rule, scored_by=scored_by
        )
        return found.rows

    figures = await measure_benchmarks(config.benchmarks, config.output_dir, ask, console)
    return replace(measured, benchmarks=figures)


def _serve_and_measure(
    recipe: Recipe, examples: Sequence[Example], fresh: bool, console: Console
) -> tuple[Measured, dict[str, list[AnswerRow]]]:
    """Serve the recipe, ask it, then serve the judge's model alone and ask that."""
    config = required_serve(recipe)
    with ray_session():
        with serving(config, recipe.search) as url:
            measured = asyncio.run(_measure_all(recipe, url, examples, fresh, console))
        with serving(alone(config), recipe.search) as url:
            plain = asyncio.run(measure_alone(recipe, url, examples, fresh=fresh, console=console))
    return measured, {**measured.rows, JUDGE_ALONE: plain}


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - started


def main(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML).")],
    url: Annotated[str | None, typer.Option(help="Endpoint to ask; without it, serve.")] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="Endpoint that serves the judge's model as the generator.")
    ] = None,
    fresh: Annotated[bool, typer.Option(help="Ask everything again.")] = False,
) -> None:
    """Ask held-out questions by every method; write report.json and report.html."""

    def job() -> None:
        console = Console()
        page = evaluate(
            load_recipe(recipe), url=url, judge_url=judge_url, fresh=fresh, console=console
        )
        console.print(f"Report: {page}", soft_wrap=True)

    run_job(job)


if __name__ == "__main__":
    typer.run(main)
