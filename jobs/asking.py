"""Asking by every method: questions in, answers in an output folder that can be gone on with."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI
from rich.console import Console

from jobs.progress import StepBar
from stagebeam.evaluation.answers import AnswerRow, AnswerStore, Rule, name_of
from stagebeam.evaluation.ask import Ask, EngineAsk, HttpAsk, run_method
from stagebeam.evaluation.claim import JUDGE_ALONE, label
from stagebeam.evaluation.question import prompt_of
from stagebeam.inference.load import OwnedJudge, load_generator, load_judge
from stagebeam.inference.types import Generator
from stagebeam.recipe import EvaluationConfig, Recipe, ServeConfig
from stagebeam.records import Example
from stagebeam.search import SearchSettings
from stagebeam.search.calibration import read_calibration
from stagebeam.search.seeds import question_key
from stagebeam.storage import on_disk

IDENTITY_FILE = "identity.json"
Plan = Sequence[tuple[str, int]]  # methods, each with its N


@dataclass(frozen=True, slots=True)
class Measured:
    """Every answer by method (`name_of` it), and the fingerprints of what gave them."""

    rows: dict[str, list[AnswerRow]]
    store: AnswerStore
    generator: str
    judge: str
    benchmarks: dict[str, float] = field(default_factory=dict)  # overall figures, percent


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
    config = section_of(recipe)
    check_calibration(recipe, examples)
    endpoint = await endpoint_of(url)
    return await ask_all(recipe, endpoint, examples, on_disk(config.output_dir), fresh, console)


async def ask_all(
    recipe: Recipe,
    source: Source,
    examples: Sequence[Example],
    folder: Path,
    fresh: bool,
    console: Console,
    *,
    rule: Rule | None = None,
    scored_by: str | None = None,
    plan: Plan | None = None,
) -> Measured:
    """Every example by every method of the recipe, or of `plan`; answers and traces go to `folder`,
    which must hold no others. `scored_by` names the `rule`. Raises ValueError as `measure` does."""
    config = section_of(recipe)
    calibration = _calibration(recipe, source)
    identity = _identity(recipe, source.generator, source.judge, calibration)
    if scored_by is not None:
        identity["rule"] = scored_by
    store = _store(folder, identity, fresh)
    if plan is None:
        plan = [("greedy", 1)] + [(m, n) for n in config.candidates for m in config.methods]
    async with source.asking(_settings(recipe), calibration) as ask:
        rows = await run_plan(ask, plan, examples, store, config.concurrency, console, rule)
    return Measured(rows, store, source.generator, source.judge)


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
    config = section_of(recipe)
    folder, plan = on_disk(config.output_dir) / JUDGE_ALONE, [(JUDGE_ALONE, 1)]
    settings = _settings(recipe)
    if not isinstance(source, str):
        generator, fingerprint = source
        store = _store(folder, _identity(recipe, fingerprint, None), fresh)
        own = EngineAsk(generator, fingerprint, settings)
        return (await run_plan(own, plan, examples, store, config.concurrency, console))[
            JUDGE_ALONE
        ]
    endpoint = await endpoint_of(source)
    store = _store(folder, _identity(recipe, endpoint.generator, None), fresh)
    async with endpoint.asking(settings, None) as ask:
        return (await run_plan(ask, plan, examples, store, config.concurrency, console))[
            JUDGE_ALONE
        ]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A served recipe: where it answers, its model's name and both fingerprints."""

    base_url: str
    model: str
    generator: str
    judge: str

    @asynccontextmanager
    async def asking(self, settings: SearchSettings, calibration: str | None) -> AsyncIterator[Ask]:
        async with AsyncOpenAI(base_url=self.base_url, api_key="none") as client:
            yield HttpAsk(client, self.model, settings, calibration)


class Engines:
    """The recipe's engines in this process, for a machine on which nothing is served."""

    def __init__(self, config: ServeConfig) -> None:
        self._generator = load_generator(config.generator)
        self._judge: OwnedJudge = load_judge(config.judge)
        self.generator, self.judge = self._generator.fingerprint, self._judge.fingerprint

    @asynccontextmanager
    async def asking(self, settings: SearchSettings, calibration: str | None) -> AsyncIterator[Ask]:
        """`retrace` reads the recipe's own cutoffs here: `calibration` needs no check."""
        yield EngineAsk(self._generator, self.generator, settings, self._judge, self.judge)

    def close(self) -> None:
        self._judge.close()
        self._generator.close()


Source = Endpoint | Engines


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


def section_of(recipe: Recipe) -> EvaluationConfig:
    if recipe.evaluation is None:
        raise ValueError(f"The recipe {recipe.name} has no evaluation section.")
    return recipe.evaluation


def _settings(recipe: Recipe) -> SearchSettings:
    return SearchSettings(**recipe.search.model_dump())


def _goes_back(recipe: Recipe) -> bool:
    """Whether the evaluation asks by `retrace` with cutoffs."""
    return "retrace" in section_of(recipe).methods and recipe.search.max_retraces > 0


def _calibration(recipe: Recipe, source: Source) -> str | None:
    """Fingerprint of the cutoffs that `retrace` must search with; None where it is not asked.

    Raises ValueError where there are none, or they are other models'.
    """
    if not _goes_back(recipe) or recipe.search.calibration is None:
        return None
    calibration = read_calibration(recipe.search.calibration)
    calibration.check_models(source.generator, source.judge)
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


async def run_plan(
    ask: Ask,
    plan: Plan,
    examples: Sequence[Example],
    store: AnswerStore,
    concurrency: int,
    console: Console,
    rule: Rule | None = None,
    *,
    of: str = "",
) -> dict[str, list[AnswerRow]]:
    """Every example by every method and N of the plan, by `name_of` it; `of` stands before each on
    the console."""
    rows: dict[str, list[AnswerRow]] = {}
    for method, n in plan:
        name = name_of(method, n)
        with StepBar(console, f"{of}{label(name)}", len(examples)) as bar:
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
