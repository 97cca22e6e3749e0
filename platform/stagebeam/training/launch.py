"""Training under Ray Train: workers, the stream, checkpoints, restarts and progress.

This file and `data/stream.py` are where the training plane touches Ray.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
import ray.train
import torch.distributed as dist
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from stagebeam.data.ledger import Ledger, Plan
from stagebeam.data.stream import encoders_beside, ingest_config
from stagebeam.models.encoder import RowEncoder
from stagebeam.models.family import Family
from stagebeam.models.registry import family_of
from stagebeam.recipe import ModelConfig
from stagebeam.train_config import TrainConfig
from stagebeam.training.checkpoint import (
    checkpoint_name,
    export,
    read_ledger,
    start_step,
    write_ledger,
)
from stagebeam.training.contracts import Batch, Objective, OnRefused, StepReport

Progress = Callable[[StepReport], None]


class Task(Protocol):
    """What is trained on what (training/tasks.py). Pickled to every worker."""

    @property
    def plan(self) -> Plan: ...

    def dataset(self, start: int, encoders: int) -> Any:
        """The Ray Data dataset that the workers share, from step `start` on."""

    @property
    def encoder(self) -> RowEncoder: ...

    def objective(self, model: Any, family: Family) -> Objective: ...

    def steps(
        self, shard: Any, start: int, rank: int, on_refused: OnRefused
    ) -> Iterator[Sequence[Batch]]:
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
    def storage(self) -> Path:
        return self.train.output_dir / "checkpoints"

    @property
    def export_folder(self) -> Path:
        return self.train.output_dir / "model"


class _Board:
    """Where rank 0 writes steps, each rank the rows it refused, and the driver reads both."""

    def __init__(self) -> None:
        self._reports: list[StepReport] = []
        self._refused: dict[str, str] = {}

    def refuse(self, rows: dict[str, str]) -> None:
        self._refused |= rows

    def refused(self) -> dict[str, str]:
        return self._refused

    def add(self, reports: list[StepReport]) -> None:
        self._reports += reports

    def since(self, count: int) -> list[StepReport]:
        return self._reports[count:]


def fit(job: Job, on_step: Progress) -> dict[str, str]:
    """Train and export, resuming where an earlier run of the same name stopped; returns the ids
    of the rows that could not be trained on, and why.

    `on_step` is called on the driver for every optimiser step, once each even after a restart of
    the workers repeats some. Raises ValueError if a checkpoint is there that read its rows in
    another order, and RuntimeError with the worker's reason if training fails.
    """
    run_folder = job.storage / job.name
    task = job.task
    start_step(task.plan, run_folder)
    ranks = job.train.num_workers
    encoders = job.train.encoders or encoders_beside(ranks, job.train.cpus_per_worker)
    board: Any = ray.remote(num_cpus=0)(_Board).remote()
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": job, "board": board},
        torch_config=TorchConfig(backend="nccl" if job.train.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=job.train.num_workers,
            use_gpu=job.train.use_gpu,
            resources_per_worker={"CPU": job.train.cpus_per_worker},
        ),
        # A callable is asked again whenever workers start, so a restart streams only the rest.
        datasets={"train": lambda: task.dataset(start_step(task.plan, run_folder), encoders)},
        dataset_config=ingest_config(job.train.num_workers),
        run_config=_run_config(job),
    )
    try:
        with _watching(board, on_step):
            trainer.fit()
        return dict(ray.get(board.refused.remote()))
    except ray.train.TrainingFailedError as error:
        raise RuntimeError(f"Training {job.name} failed: {error}") from error
    finally:
        ray.kill(board)


def _run_config(job: Job) -> RunConfig:
    options: dict[str, Any] = {
        "name": job.name,
        "storage_path": str(job.storage),
        "failure_config": FailureConfig(max_failures=job.train.max_failures),
        "checkpoint_config": CheckpointConfig(num_to_keep=2),
        "worker_runtime_env": {"env_vars": _worker_environment(job)},
    }
    return RunConfig(**options)


@contextmanager
def _watching(board: Any, on_step: Progress) -> Iterator[None]:
    """Call `on_step` from a thread for reports as they come in."""
    done = threading.Event()

    def watch() -> None:
        seen, last = 0, 0
        while True:
            ended = done.wait(0.5)
            reports = ray.get(board.since.remote(seen))
            seen += len(reports)
            for report in reports:
                if report.step > last:
                    last = report.step
                    on_step(report)
            if ended:
                return

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _worker_environment(job: Job) -> dict[str, str]:
    """Set before the workers import anything: DeepSpeed picks its accelerator on import."""
    tools = str(Path(sys.executable).parent)  # DeepSpeed looks for ninja beside the interpreter
    environment = {"PATH": os.pathsep.join((tools, os.environ.get("PATH", "")))}
    if not job.train.use_gpu:
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return environment


class _RayReporter:
    """Sends steps to the board and checkpoints to Ray Train."""

    def __init__(self, board: Any, rank: int, plan: Plan) -> None:
        self._board, self._rank, self._plan = board, rank, plan
        self._attempt = uuid.uuid4().hex[:6]
        self._pending: list[StepReport] = []

    def step(self, report: StepReport) -> None:
        if self._rank == 0:
            self._pending.append(report)
            if len(self._pending) >= 5:
                self.flush()

    def flush(self) -> None:
        self._board.add.remote(self._pending)
        self._pending = []

    def checkpoint(self, step: int, save: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            if self._rank == 0:
                write_ledger(Ledger.after(self._plan, step), Path(folder))
            ray.train.report(
                {"step": step},
                checkpoint=ray.train.Checkpoint.from_directory(folder),
                checkpoint_dir_name=checkpoint_name(step, self._attempt_of_group()),
            )

    def _attempt_of_group(self) -> str:
        """The same on every rank of this worker group, and different after a restart."""
        names: list[str] = [self._attempt]
        dist.broadcast_object_list(names, src=0)
        return names[0]


def _work(config: dict[str, Any]) -> None:
    """What each rank runs."""
    job, board = config["job"], config["board"]
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # imported here: DeepSpeed reads its accelerator from the worker's environment
    from stagebeam.training.loop import load_shards, make_engine, run_steps
    from stagebeam.training.zero import deepspeed_settings, load_partitioned

    context = ray.train.get_context()
    settings = deepspeed_settings(job.model, job.train)
    model = load_partitioned(job.model.path, job.model.dtype, settings)
    if job.train.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    engine = make_engine(job.task.objective(model, family_of(job.model.path)), job.train, settings)
    start = 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            start = read_ledger(Path(folder)).start_step(job.task.plan)
            load_shards(engine, Path(folder))
    reporter = _RayReporter(board, context.get_world_rank(), job.task.plan)
    run_steps(
        engine,
        job.train,
        job.task.steps(
            ray.train.get_dataset_shard("train"),
            start,
            context.get_world_rank(),
            board.refuse.remote,
        ),
        reporter,
        start=start,
        total=job.task.plan.total_steps,
        epoch_of=job.task.plan.epoch_of,
    )
    reporter.flush()
    export(engine, job.task.encoder, job.export_folder, job.recipe)
