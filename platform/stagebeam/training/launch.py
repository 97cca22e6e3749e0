"""Training under Ray Train: workers, the stream, checkpoints, restarts and progress.

This file and `data/stream.py` are where the training plane touches Ray. No checkpoint is committed
before the driver has told of the steps that led to it.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from stagebeam.data.ledger import Ledger, Plan
from stagebeam.data.stream import IngestBySize, encoders_beside
from stagebeam.models.encoder import RowEncoder
from stagebeam.models.family import Family
from stagebeam.models.registry import family_of
from stagebeam.recipe import ModelConfig
from stagebeam.records import Example
from stagebeam.storage import Place, RemotePath, filled
from stagebeam.train_config import TrainConfig
from stagebeam.training.checkpoint import (
    checkpoint_name,
    export,
    read_ledger,
    remove_uncommitted,
    start_step,
    write_ledger,
)
from stagebeam.training.contracts import (
    EvaluationReport,
    Objective,
    OnRefused,
    Step,
    StepReport,
    Take,
)
from stagebeam.training.reports import LOOK_EVERY, Board, Progress, Report, watching

LOSS = "held_out_loss"


class Task(Protocol):
    """What is trained on what (training/tasks.py). Pickled to every worker."""

    @property
    def plan(self) -> Plan: ...

    def at(self, world_size: int) -> Self:
        """The same steps on other ranks."""

    @property
    def encoder(self) -> RowEncoder: ...

    @property
    def staged(self) -> bool:
        """Whether answers are learnt with their tags."""

    @property
    def reword(self) -> Callable[[Example], Example]: ...

    def dataset(self, start: int, encoders: int) -> Any:
        """The Ray Data dataset that the workers share, from step `start` on."""

    def objective(self, model: Any, family: Family) -> Objective: ...

    def steps(self, shard: Any, start: int, rank: int, on_refused: OnRefused) -> Iterator[Step]:
        """A rank's micro-batches from its part of the dataset, a list for each step."""


@dataclass(frozen=True, slots=True)
class Job:
    """One training run."""

    name: str
    model: ModelConfig
    train: TrainConfig
    task: Task
    recipe: str  # JSON, kept in the export

    def __post_init__(self) -> None:
        assert self.train.output_dir.is_absolute(), "workers run in folders of their own"

    @property
    def storage(self) -> Place:
        return self.train.output_dir / "checkpoints"

    @property
    def run_folder(self) -> Place:
        """Ray Train's, with a folder for each checkpoint."""
        return self.storage / self.name

    @property
    def export_folder(self) -> Place:
        return self.train.output_dir / "model"

    def at(self, world_size: int) -> Self:
        """The same job on as many ranks as there are."""
        task = self.task.at(world_size)
        spread: dict[str, object] = {
            "num_workers": world_size,
            "gradient_accumulation_steps": task.plan.gradient_accumulation_steps,
        }
        return replace(self, task=task, train=self.train.model_copy(update=spread))

    def dataset(self, start: int) -> Any:
        """What the ranks share from step `start` on, encoded beside them."""
        ranks = self.train.num_workers
        beside = self.train.encoders or encoders_beside(ranks, self.train.cpus_per_worker)
        return self.task.dataset(start, beside)


def fit(job: Job, on_report: Progress) -> dict[str, str]:
    """Train and export, resuming where an earlier run of the same name stopped; returns the ids
    of the rows that could not be trained on, and why.

    `on_report` is called on the driver for every optimiser step and evaluation, once each even
    after a restart of the workers repeats some. Raises ValueError if a checkpoint is there that
    read its rows in another order, FloatingPointError with the ids of rows if a loss or gradient
    is not finite, and RuntimeError with the worker's reason if training fails otherwise.
    """
    run_folder, plan = job.run_folder, job.task.plan
    start_step(plan, run_folder)
    remove_uncommitted(run_folder)
    actor: Any = ray.remote(Board)
    board = actor.options(num_cpus=0, scheduling_strategy=_here()).remote()
    # A callable is asked again whenever workers start, so a restart streams only the rest.
    datasets: Any = {"train": lambda: partial(_dataset, job, start_step(plan, run_folder))}
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": job, "board": board},
        torch_config=TorchConfig(backend="nccl" if job.train.use_gpu else "gloo"),
        scaling_config=_scaling(job.train),
        datasets=datasets,
        dataset_config=IngestBySize(),
        run_config=_run_config(job),
    )
    try:
        with watching(lambda seen: ray.get(board.since.remote(seen)), on_report):
            trainer.fit()
        if fault := ray.get(board.fault.remote()):
            raise FloatingPointError(fault)
        return dict(ray.get(board.refused.remote()))
    except ray.train.TrainingFailedError as error:
        raise RuntimeError(f"Training {job.name} failed: {error}") from error
    finally:
        ray.kill(board)


def _here() -> NodeAffinitySchedulingStrategy:
    """On the node of this process, which is lost with it and not before."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _scaling(train: TrainConfig) -> ScalingConfig:
    fewest, most = train.min_workers, train.num_workers
    settings: dict[str, Any] = {
        "num_workers": most if fewest is None else (fewest, most),
        "elastic_resize_monitor_interval_s": train.resize_every_s,
        "use_gpu": train.use_gpu,
        "resources_per_worker": {"CPU": train.cpus_per_worker},
    }
    return ScalingConfig(**settings)


def _dataset(job: Job, start: int, ranks: int) -> Any:
    return job.at(ranks).dataset(start)


def _run_config(job: Job) -> RunConfig:
    # Ray keeps the latest checkpoint beside those that it is told to keep.
    kept: dict[str, Any] = {"num_to_keep": 2}
    if job.train.evaluation is not None:
        order = {"checkpoint_score_attribute": LOSS, "checkpoint_score_order": "min"}
        kept = {"num_to_keep": 1, **order}
    options: dict[str, Any] = {
        "name": job.name,
        **_storage(job.storage),
        "failure_config": FailureConfig(max_failures=job.train.max_failures),
        "checkpoint_config": CheckpointConfig(**kept),
        "worker_runtime_env": {"env_vars": worker_environment(job)},
    }
    return RunConfig(**options)


def _storage(place: Place) -> dict[str, Any]:
    if isinstance(place, RemotePath):
        return {"storage_path": place.path, "storage_filesystem": place.filesystem}
    return {"storage_path": str(place)}


def worker_environment(job: Job) -> dict[str, str]:
    """Set before the workers import anything: DeepSpeed picks its accelerator on import."""
    tools = str(Path(sys.executable).parent)  # DeepSpeed looks for ninja beside the interpreter
    environment = {"PATH": os.pathsep.join((tools, os.environ.get("PATH", "")))}
    if not job.train.use_gpu:
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return environment


def _work(config: dict[str, Any]) -> None:
    """What each rank runs. A fault of the numbers is told, not raised: it would come again after
    a restart."""
    context = ray.train.get_context()
    job, board = config["job"].at(context.get_world_size()), config["board"]
    reporter = RayReporter(board, context.get_world_rank(), job.task.plan, job.run_folder)
    try:
        _train(job, board, reporter)
    except FloatingPointError as error:
        board.fail.remote(str(error))
    finally:
        reporter.flush()


def _train(job: Job, board: Any, reporter: RayReporter) -> None:
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # imported here: DeepSpeed reads its accelerator from the worker's environment
    from stagebeam.training.heldout import HeldOut
    from stagebeam.training.loop import Course, make_engine, run_steps
    from stagebeam.training.shards import restore
    from stagebeam.training.zero import deepspeed_settings, open_for_training

    rank, task, train = ray.train.get_context().get_world_rank(), job.task, job.train
    family = family_of(job.model.path)
    settings = deepspeed_settings(job.model, train)
    model = open_for_training(job.model, train, family, settings, task.plan.seed)
    engine = make_engine(task.objective(model, family), train, settings)
    start = 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            start = read_ledger(Path(folder)).start_step(task.plan)
            restore(engine, Path(folder))
    held_out = None
    if train.evaluation is not None:
        batch = task.plan.micro_batch_size
        held_out = HeldOut(train.evaluation, task.encoder, task.reword, batch)
    course = Course(
        start=start,
        total=task.plan.total_steps,
        epoch_of=task.plan.epoch_of,
        seed=task.plan.seed,
        flops=partial(family.flops, model.config),
        held_out=held_out,
        profile_folder=train.output_dir / "profile" if rank == 0 else None,
    )
    shard = ray.train.get_dataset_shard("train")
    steps = task.steps(shard, start, rank, board.refuse.remote)
    run_steps(engine, train, steps, reporter, course)
    export(engine, task.encoder, job.export_folder, job.recipe, train.lora)


class RayReporter:
    """Sends reports to the board and checkpoints to Ray Train."""

    def __init__(self, board: Any, rank: int, plan: Plan, run_folder: Place) -> None:
        self._board, self._rank, self._plan = board, rank, plan
        self._run_folder = run_folder
        self._attempt = uuid.uuid4().hex[:6]  # Ray takes rank 0's
        self._pending: list[Report] = []
        self._written = threading.Event()
        self._written.set()

    def step(self, report: StepReport) -> None:
        self._add(report)
        if len(self._pending) >= 5:
            self.flush()

    def evaluation(self, report: EvaluationReport) -> None:
        self._add(report)

    def _add(self, report: Report) -> None:
        if self._rank == 0:
            self._pending.append(report)

    def flush(self) -> Any:
        """A reference to how many reports the board then has."""
        added = self._board.add.remote(self._pending)
        self._pending = []
        return added

    def _wait_until_told(self, added: Any) -> None:
        """A run that is continued from a checkpoint never tells of the steps before it again."""
        count = ray.get(added)
        while ray.get(self._board.told.remote()) < count:
            time.sleep(LOOK_EVERY / 5)

    def checkpoint(self, step: int, take: Take, loss: float | None) -> None:
        """Training waits for the copy out of the device alone; Ray's thread writes it."""
        added = self.flush()
        self._written.wait()  # one copy at a time in host memory
        write = take()
        self._written.clear()
        storage = ray.train.get_context().get_storage()

        def upload(checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            try:
                # Straight to where it stays, where that is storage that every node mounts.
                with filled(self._run_folder / name) as folder:
                    write(folder)
                    if self._rank == 0:
                        write_ledger(Ledger.after(self._plan, step), folder)
            finally:
                self._written.set()
            self._wait_until_told(added)
            place = storage.build_checkpoint_path_from_name(name)
            return ray.train.Checkpoint(place, storage.storage_filesystem)

        # Without a number Ray 2.60 takes a checkpoint for the best of all.
        score = sys.float_info.max if loss is None else loss
        ray.train.report(
            {"step": step, LOSS: score},
            checkpoint=ray.train.Checkpoint.from_directory(tempfile.mkdtemp()),
            checkpoint_dir_name=checkpoint_name(step, self._attempt),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
        )
