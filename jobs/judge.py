"""Train a judge from the generator's own mistakes: `python -m jobs.judge RECIPE [--fresh]`.

The generator answers training questions; the first stage in which a sampled answer differs from
the gold one becomes a pair (gold is better than what was sampled). The judge starts from the
generator's weights and is trained on gold answers and on those pairs (docs/judge.md).
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Any

import ray
import typer
from rich.console import Console

from jobs.arguments import RecipeFile
from jobs.cluster import ray_session
from jobs.errors import run_job
from jobs.progress import StepBar
from jobs.runs import tracked_run
from jobs.train import TrainSummary, ensure_model, finished, plan_of, required_train, run_training
from stagebeam.data.preferences import (
    Preference,
    Preferences,
    first_fault,
    write_preferences,
)
from stagebeam.data.shards import iter_examples
from stagebeam.inference.load import load_generator
from stagebeam.inference.types import Candidate, GenerateRequest, Prompt, Sampling
from stagebeam.models.registry import family_of
from stagebeam.recipe import EngineConfig, JudgeTraining, Recipe, load_recipe
from stagebeam.records import Example
from stagebeam.search.seeds import candidate_seed, question_key
from stagebeam.stages import Stage
from stagebeam.storage import Place
from stagebeam.tracking import Run
from stagebeam.train_config import TrainConfig
from stagebeam.training.launch import Job
from stagebeam.training.tasks import PreferenceTask

PAIRS_FILE = "pairs.parquet"
_CHUNK = 64  # questions that a sampler answers between two reports
_SAMPLERS = 2


def train_judge(recipe: Recipe, run: Run, console: Console, *, fresh: bool = False) -> TrainSummary:
    """Sample, pair and train in an initialised Ray session; returns at once where it is done.

    Raises ValueError where the recipe lacks a section, the generator is not trained yet, or the
    output folder holds another run.
    """
    config = required(recipe)
    generator = trained_generator(recipe)
    settings = recipe.model_copy(update={"serve": None, "evaluation": None}).fingerprint()
    done = finished(config.output_dir, settings, fresh=fresh)
    if done is not None:
        return done
    pairs = config.output_dir / PAIRS_FILE if config.pairs is None else config.pairs.absolute()
    if config.pairs is not None:
        if not Preferences(pairs):  # what is wrong with them is said before training starts
            raise ValueError(f"{pairs} holds no pair to learn from.")
    elif not pairs.exists():
        write_preferences(pairs, sample_pairs(recipe, config, generator, console))
    train = _train_config(recipe, config)
    trained = recipe.model.model_copy(update={"path": str(generator), "tiny_layers": None})
    model = ensure_model(config.model or trained, recipe.data.shards, recipe.seed + 1)
    task = PreferenceTask(
        shards=recipe.data.shards.absolute(),
        plan=plan_of(train, recipe.data, recipe.seed + 1),
        encoder=family_of(model.path).encoder(model.path, recipe.data.max_length),
        pairs=pairs,
        pairs_per_row=config.pairs_per_row,
        pair_weight=config.pair_weight,
    )
    job = Job("judge", model, train, task, recipe.model_dump_json())
    return run_training(job, settings, run, console)


def _train_config(recipe: Recipe, config: JudgeTraining) -> TrainConfig:
    """The generator's training section with the judge's length, rate and folder."""
    return required_train(recipe).model_copy(
        update={
            "output_dir": config.output_dir,
            "learning_rate": config.learning_rate,
            "max_steps": config.steps,
            "epochs": 1 + config.steps,  # the steps decide
            "packing": False,  # a pair's rows are compared as wholes
            "evaluation": None,
            "min_workers": None,  # which pairs come along follows from the ranks' rows
        }
    )


def sample_pairs(
    recipe: Recipe, config: JudgeTraining, generator: Place, console: Console
) -> list[Preference]:
    """Different first faults of the generator on the training questions."""
    examples = list(islice(iter_examples(recipe.data.shards), config.questions))
    answers = sample_answers(recipe, config, generator, examples, console)
    faults = (
        first_fault(example, text)
        for example, texts in zip(examples, answers, strict=True)
        for text in texts
    )
    different = {(f.id, f.stage, f.rejected): f for f in faults if f is not None}
    if not different:
        raise ValueError("The generator made no mistake that a judge could learn from.")
    return list(different.values())


def sample_answers(
    recipe: Recipe,
    config: JudgeTraining,
    generator: Place,
    examples: Sequence[Example],
    console: Console,
) -> list[list[str]]:
    """Whole answers to each example's last question, sampled by Ray actors."""
    engine = EngineConfig(model=str(generator.absolute()))
    actor: Any = ray.remote(num_cpus=0.5)(_Sampler)
    samplers = [actor.remote(engine, recipe.seed, config) for _ in range(_SAMPLERS)]
    chunks = [examples[at : at + _CHUNK] for at in range(0, len(examples), _CHUNK)]
    answers: dict[int, list[list[str]]] = {}
    with StepBar(console, "sample", len(chunks)) as bar:
        pending = {
            samplers[i % _SAMPLERS].answer.remote(chunk): i for i, chunk in enumerate(chunks)
        }
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            answers[pending.pop(ready)] = ray.get(ready)
            bar.update(len(answers), f"{len(answers) * _CHUNK} questions")
    for sampler in samplers:
        ray.kill(sampler)
    return [texts for i in sorted(answers) for texts in answers[i]]


class _Sampler:
    """A generator in a process of its own."""

    def __init__(self, engine: EngineConfig, seed: int, config: JudgeTraining) -> None:
        self._generator = load_generator(engine)
        self._seed, self._config = seed, config

    async def answer(self, examples: Sequence[Example]) -> list[list[str]]:
        return list(await asyncio.gather(*map(self._one, examples)))

    async def _one(self, example: Example) -> list[str]:
        prompt = Prompt(example.messages[:-1], tuple(i.bytes for i in example.images))
        key = question_key(prompt)
        seeds = tuple(
            candidate_seed(self._seed, key, "JUDGE_TRAINING", index)
            for index in range(self._config.samples)
        )
        sampling = Sampling(self._config.temperature, 1.0, self._config.max_new_tokens)
        request = GenerateRequest(prompt, "", (Stage.CONCLUSION.close_tag,), seeds, sampling)
        found = [c async for c in self._generator.propose(request) if isinstance(c, Candidate)]
        return [c.text for c in sorted(found, key=lambda c: c.index)]


def trained_generator(recipe: Recipe) -> Place:
    """The generator's folder. Raises ValueError where it is not trained yet."""
    folder = required_train(recipe).output_dir / "model"
    if not folder.exists():
        raise ValueError(f"The generator {folder} is not there yet; train it first.")
    return folder


def required(recipe: Recipe) -> JudgeTraining:
    """The judge_training section, its folder absolute."""
    if recipe.judge_training is None:
        raise ValueError(f"The recipe '{recipe.name}' has no judge_training section.")
    folder = recipe.judge_training.output_dir.absolute()
    return recipe.judge_training.model_copy(update={"output_dir": folder})


def main(
    recipe: RecipeFile,
    fresh: Annotated[bool, typer.Option(help="Train again even if a judge is there.")] = False,
) -> None:
    """Train a judge from the generator's own samples and gold answers."""

    def job() -> None:
        loaded = load_recipe(recipe)
        folder = required(loaded).output_dir
        trained_generator(loaded)  # before anything is written
        console = Console()
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        with tracked_run(loaded, folder, "judge") as run, ray_session():
            summary = train_judge(loaded, run, console)
        console.print(f"{summary.steps} steps, loss {summary.final_loss:.4f}: {summary.model}")

    run_job(job)


if __name__ == "__main__":
    typer.run(main)
