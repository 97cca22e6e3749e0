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

from stagebeam.data.stream import ingest_config
from stagebeam.models.families.mllama import MllamaEncoder
from stagebeam.recipe import ModelConfig, TrainConfig
from stagebeam.training.checkpoint import checkpoint_name, export, latest_step, step_of
from stagebeam.training.contracts import Batch, Objective, StepReport

Progress = Callable[[StepReport], None]


class Task(Protocol):
    """What is trained on what (training/tasks.py). Pickled to every worker."""

    @property
    def total_steps(self) -> int: ...

    @property
    def steps_per_epoch(self) -> int: ...

    def dataset(self, start: int) -> Any:
        """The Ray Data dataset that the workers share, from step `start` on."""

    def objective(self, model: Any, encoder: MllamaEncoder) -> Objective: ...

    def steps(self, shard: Any, start: int, rank: int) -> Iterator[Sequence[Batch]]:
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
    """Where rank 0 writes steps and the driver reads them."""

    def __init__(self) -> None:
        self._reports: list[StepReport] = []

    def add(self, reports: list[StepReport]) -> None:
        self._reports += reports

    def since(self, count: int) -> list[StepReport]:
        return self._reports[count:]


def fit(job: Job, on_step: Progress) -> Path:
    """Train, resume where an earlier run of the same name stopped; returns the exported folder.

    `on_step` is called on the driver for every optimiser step, once each even after a restart of
    the workers repeats some. Raises RuntimeError with the worker's reason if training fails.
    """
    board = ray.remote(num_cpus=0)(_Board).remote()
    run_folder = job.storage / job.name
    task = job.task
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
        datasets={"train": lambda: task.dataset(latest_step(run_folder))},
        dataset_config=ingest_config(job.train.num_workers),
        run_config=_run_config(job),
    )
    with _watching(board, on_step):
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise RuntimeError(f"Training {job.name} failed: {error}") from error
    return job.export_folder


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
        ray.kill(board)


def _worker_environment(job: Job) -> dict[str, str]:
    """Set before the workers import anything: DeepSpeed picks its accelerator on import."""
    tools = str(Path(sys.executable).parent)  # DeepSpeed looks for ninja beside the interpreter
    environment = {"PATH": os.pathsep.join((tools, os.environ.get("PATH", "")))}
    if not job.train.use_gpu:
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return environment


class _RayReporter:
    """Sends steps to the board and checkpoints to Ray Train."""

    def __init__(self, board: Any, rank: int) -> None:
        self._board, self._rank = board, rank
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
    encoder = MllamaEncoder(job.model.path)
    model = load_partitioned(job.model.path, job.model.dtype, settings)
    if job.train.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    engine = make_engine(job.task.objective(model, encoder), job.train, settings)
    start = 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        start = step_of(checkpoint.path)
        with checkpoint.as_directory() as folder:
            load_shards(engine, Path(folder))
    reporter = _RayReporter(board, context.get_world_rank())
    run_steps(
        engine,
        job.train,
        job.task.steps(ray.train.get_dataset_shard("train"), start, context.get_world_rank()),
        reporter,
        start=start,
        total=job.task.total_steps,
        steps_per_epoch=job.task.steps_per_epoch,
    )
    reporter.flush()
    export(engine, encoder.processor, job.export_folder, job.recipe)
