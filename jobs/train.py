"""Train the recipe's model on its shards: `python -m jobs.train RECIPE [--fresh]`.

Ray Train workers, DeepSpeed ZeRO, checkpoints that a killed run resumes from, and an export that
`from_pretrained` opens. A run that is finished is not repeated.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict
from rich.console import Console

from jobs.arguments import RecipeFile
from jobs.cluster import ray_session
from jobs.errors import run_job
from jobs.progress import StepBar
from jobs.runs import tracked_run
from jobs.training_watch import Watch
from stagebeam.data.layout import TRAIN_SPLIT
from stagebeam.data.ledger import Plan
from stagebeam.data.manifest import read_manifest
from stagebeam.data.order import read_rows
from stagebeam.data.shards import iter_examples
from stagebeam.inference.wording import wording
from stagebeam.local_copy import working_copy
from stagebeam.models.registry import family_of
from stagebeam.models.tiny.build import build_tiny
from stagebeam.recipe import DataConfig, ModelConfig, Recipe, load_recipe
from stagebeam.storage import Place, is_url, remove_tree
from stagebeam.tracking import Run
from stagebeam.train_config import TrainConfig
from stagebeam.training.heldout import open_rows
from stagebeam.training.launch import Job, fit
from stagebeam.training.tasks import SupervisedTask
from stagebeam.training.trainable import check_packing

SUMMARY_FILE = "summary.json"
_SHOWN_REFUSALS = 5


class TrainSummary(BaseModel):
    """What a finished run leaves beside its export."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: str
    model: str  # folder of the export
    world_size: int
    zero_stage: int
    steps: int
    rows: int  # that an epoch reads
    refused: int  # rows that could not be trained on
    final_loss: float  # mean over the last tenth of the steps
    held_out_loss: float | None = None  # the last one, nats a token
    seconds: float


def train(recipe: Recipe, run: Run, console: Console, *, fresh: bool = False) -> TrainSummary:
    """Train in an initialised Ray session; returns at once where the same run is finished.

    Raises ValueError where the recipe lacks a section or the output folder holds another run.
    """
    config = required_train(recipe)
    settings = learnt(recipe, config).fingerprint()
    done = finished(config.output_dir, settings, fresh=fresh)
    if done is not None:
        return done
    model = ensure_model(recipe.model, recipe.data.shards, recipe.seed)
    family = family_of(model.path)
    check_packing(family, config)
    task = SupervisedTask(
        shards=recipe.data.shards.absolute(),
        plan=plan_of(config, recipe.data, recipe.seed),
        answers=recipe.data.answers,
        encoder=family.encoder(model.path, recipe.data.max_length),
        pack_to=recipe.data.max_length if config.packing else None,
    )
    job = Job("train", model, config, task, recipe.model_dump_json())
    return run_training(job, settings, run, console)


def learnt(recipe: Recipe, config: TrainConfig) -> Recipe:
    """The recipe without what may change between a run and its continuation: how the work is
    spread over machines, and what is looked at while it goes on."""
    spread = {"num_workers": 1, "gradient_accumulation_steps": 1, "cpus_per_worker": 1.0}
    elastic = {"min_workers": None, "resize_every_s": 60.0, "max_failures": 0}
    kept: dict[str, object] = {
        **spread, **elastic, "encoders": None, "zero_stage": 3, "offload": "none",
        "checkpoint_every": 1, "evaluation": None, "peak_tflops": None, "profile_steps": 0,
        "gradient_checkpointing": False,
    }  # fmt: skip
    return recipe.model_copy(
        update={
            "train": config.model_copy(update=kept),
            "judge_training": None,
            "serve": None,
            "evaluation": None,
        }
    )


def run_training(job: Job, fingerprint: str, run: Run, console: Console) -> TrainSummary:
    """Run a training job with a progress bar and tracking, and write its summary."""
    started = time.perf_counter()
    plan = job.task.plan
    if plan.unread:
        console.print(f"    the last {plan.unread} rows make no whole batch and are not read")
    with StepBar(console, job.name, plan.total_steps) as bar:
        watch = Watch(job, run, bar)
        refused = fit(job, watch)
    _tell(refused, console)
    tail = watch.losses[-max(1, len(watch.losses) // 10) :]
    summary = TrainSummary(
        fingerprint=fingerprint,
        model=str(job.export_folder),
        world_size=job.train.num_workers,
        zero_stage=job.train.zero_stage,
        steps=plan.total_steps,
        rows=plan.epoch_length,
        refused=len(refused),
        final_loss=sum(tail) / len(tail),
        held_out_loss=watch.held_out_loss,
        seconds=time.perf_counter() - started,
    )
    (job.train.output_dir / SUMMARY_FILE).write_text(summary.model_dump_json(indent=1))
    return summary


def _tell(refused: dict[str, str], console: Console) -> None:
    if refused:
        console.print(f"    {len(refused)} rows could not be trained on, such as:")
    for reason in islice(refused.values(), _SHOWN_REFUSALS):
        console.print(f"      {reason}", markup=False, highlight=False)


def finished(folder: Place, fingerprint: str, *, fresh: bool) -> TrainSummary | None:
    """The summary of a finished run of the same settings; None where training is to be done.

    Raises ValueError where the folder holds a run of other settings and `fresh` is not set.
    """
    if fresh:
        remove_tree(folder)
    marker = folder / "settings"
    if marker.exists() and marker.read_text() != fingerprint:
        raise ValueError(f"{folder} holds a run with other settings; use --fresh to replace it.")
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(fingerprint)
    summary = folder / SUMMARY_FILE
    return TrainSummary.model_validate_json(summary.read_text()) if summary.exists() else None


def plan_of(config: TrainConfig, data: DataConfig, seed: int) -> Plan:
    """The order of the shards' rows; raises ValueError where there are fewer than one global
    batch, where a weight is for a source that they do not have, or they are not complete."""
    return Plan(
        rows=read_rows(data.shards, TRAIN_SPLIT, data.weights),
        global_batch_size=config.global_batch_size,
        world_size=config.num_workers,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        epochs=config.epochs,
        seed=seed,
        max_steps=config.max_steps,
        window=data.length_window,
    )


def ensure_model(model: ModelConfig, shards: Place, seed: int) -> ModelConfig:
    """The model by an absolute path (workers run elsewhere), built where it is tiny and absent.

    Raises ValueError where nothing is there, or no model of a known family.
    """
    if is_url(model.path):
        family_of(model.path, model.family)
        return model
    path = Path(model.path)
    if model.tiny_layers is not None and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        build_tiny(path, _texts(shards), seed, model.tiny_layers, model.family)
    family_of(model.path, model.family)
    return model.model_copy(update={"path": str(path.absolute())}) if path.exists() else model


def required_train(recipe: Recipe) -> TrainConfig:
    """The train section, its folders absolute: workers run in folders of their own."""
    if recipe.train is None:
        raise ValueError(f"The recipe '{recipe.name}' has no train section.")
    update: dict[str, object] = {"output_dir": recipe.train.output_dir.absolute()}
    if (evaluation := recipe.train.evaluation) is not None:
        beside = recipe.evaluation.shards if recipe.evaluation else recipe.data.shards
        shards = {"shards": (evaluation.shards or beside).absolute()}
        update["evaluation"] = evaluation.model_copy(update=shards)
    return recipe.train.model_copy(update=update)


def _tracked_in(output_dir: Place) -> Place:
    """Of a remote folder a part, as what a tracked run writes is copied there and back."""
    return output_dir if isinstance(output_dir, Path) else output_dir / "tracking"


def _texts(shards: Place) -> Iterator[str]:
    yield from wording()
    for example in iter_examples(shards):
        yield from (message.text for message in example.messages)


def main(
    recipe: RecipeFile,
    fresh: Annotated[bool, typer.Option(help="Train again even if a run is there.")] = False,
) -> None:
    """Train the recipe's model on its shards and export it."""

    def job() -> None:
        loaded = load_recipe(recipe)
        config = required_train(loaded)
        read_manifest(loaded.data.shards)  # before anything is written
        if config.evaluation is not None:
            open_rows(config.evaluation)
        console = Console()
        if fresh:
            remove_tree(config.output_dir)
        with (
            working_copy(_tracked_in(config.output_dir)) as folder,
            tracked_run(loaded, folder, "train") as run,
            ray_session(),
        ):
            summary = train(loaded, run, console)
        console.print(f"{summary.steps} steps, loss {summary.final_loss:.4f}: {summary.model}")

    run_job(job)


if __name__ == "__main__":
    typer.run(main)
