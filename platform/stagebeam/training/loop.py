"""The training loop: batches in, optimiser steps and reports out. No Ray here.

It runs under Ray Train (`training/launch.py`) and under plain `torchrun` alike, given an
initialised process group. The loss of a step is the sum over the tokens with loss of the whole
global batch, divided by their number: the same whatever the world size and the accumulation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from stagebeam.train_config import TrainConfig
from stagebeam.training.contracts import Batch, Objective, Reporter, StepReport


def learning_rate(train: TrainConfig, step: int, total: int, epoch: int) -> float:
    """The rate of a step of an epoch (both counted from 0)."""
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    if train.schedule == "cosine":
        done = (step - train.warmup_steps) / max(1, total - train.warmup_steps)
        return train.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))
    if train.schedule == "step":
        return train.learning_rate * train.step_decay**epoch
    return train.learning_rate


def make_engine(objective: Objective, train: TrainConfig, settings: dict[str, Any]) -> Any:
    """DeepSpeed's engine over the objective, with torch's AdamW."""
    optimizer = torch.optim.AdamW(
        [p for p in objective.parameters() if p.requires_grad],
        lr=train.learning_rate,
        betas=train.betas,
        weight_decay=train.weight_decay,
    )
    engine, *_ = deepspeed.initialize(model=objective, optimizer=optimizer, config=settings)
    return engine


def run_steps(
    engine: Any,
    train: TrainConfig,
    steps: Iterator[Sequence[Batch]],
    reporter: Reporter,
    *,
    start: int,
    total: int,
    epoch_of: Callable[[int], int],
) -> None:
    """Take the optimiser steps `start` to `total`; `steps` yields a step's micro-batches,
    `epoch_of(step)` says where it belongs."""
    for step in range(start, total):
        began = time.perf_counter()
        micro_batches = next(steps)
        waited = time.perf_counter() - began
        rate = learning_rate(train, step, total, epoch_of(step))
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        loss, tokens = _one_step(engine, micro_batches)
        if not math.isfinite(loss):
            raise FloatingPointError(f"The loss of step {step + 1} is {loss}.")
        reporter.step(
            StepReport(step + 1, loss, round(tokens), rate, time.perf_counter() - began, waited)
        )
        if (step + 1) % train.checkpoint_every == 0 and step + 1 < total:
            reporter.checkpoint(step + 1, lambda folder: save_shards(engine, folder))


def _one_step(engine: Any, micro_batches: Sequence[Batch]) -> tuple[float, float]:
    """Forward, backward and update; returns the loss of the global batch and its tokens."""
    # A copy even on a CPU: what the stream hands over is mapped, and read-only.
    tensors = [
        {key: torch.tensor(value).to(engine.device) for key, value in batch.items()}
        for batch in micro_batches
    ]
    weights = sum(engine.module.weights(**batch).double() for batch in tensors)  # [terms]
    assert isinstance(weights, torch.Tensor)
    dist.all_reduce(weights)
    # DeepSpeed averages over ranks and over micro-batches: undo both, divide by the true weight.
    scale = dist.get_world_size() * len(tensors) / weights.clamp_min(1)
    sums = torch.zeros_like(weights)
    for batch in tensors:
        terms = engine(**batch)
        engine.backward((terms * scale).sum().float())
        engine.step()
        sums += terms.detach()
    dist.all_reduce(sums)
    return float((sums / weights.clamp_min(1)).sum()), float(weights[0])


def save_shards(engine: Any, folder: Path) -> None:
    """This rank's share of weights and optimiser state."""
    engine.save_checkpoint(str(folder), tag="shards")


def load_shards(engine: Any, folder: Path) -> None:
    """The opposite, at the same world size. Raises ValueError where nothing can be loaded."""
    path, _ = engine.load_checkpoint(str(folder), tag="shards")
    if path is None:
        raise ValueError(f"There is no checkpoint in {folder}.")
