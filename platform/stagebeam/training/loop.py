"""The training loop: batches in, optimiser steps and reports out. No Ray here.

It runs under Ray Train (`training/launch.py`) and under plain `torchrun` alike, given an
initialised process group. The loss of a step is the sum over the tokens with loss of the whole
global batch, divided by their number: the same whatever the world size and the accumulation.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import deepspeed
import torch
import torch.distributed as dist

from stagebeam.models.encoder import Arrays
from stagebeam.models.family import Tensors, on_device
from stagebeam.models.flops import Flops
from stagebeam.storage import Place
from stagebeam.train_config import TrainConfig
from stagebeam.training.contracts import Objective, Reporter, Step, StepReport
from stagebeam.training.heldout import HeldOut
from stagebeam.training.profiling import profiled
from stagebeam.training.shards import snapshot
from stagebeam.training.throughput import memory_bytes, peak_flops


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
    dist.barrier()
    _unlink_shared_buffer()
    return engine


def _unlink_shared_buffer() -> None:
    """DeepSpeed's ranks on a CPU share buffers of 69 MB each, and leave their names behind, and so
    the memory, when they end. Once every rank has them mapped, no name is needed."""
    name = "deepspeed_allreduce_buffer_{}_{}_{}_{}".format(
        os.getuid(), os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT"), dist.get_rank()
    )
    Path("/dev/shm", name).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Course:
    """Which steps are taken, and what happens between them."""

    start: int
    total: int
    epoch_of: Callable[[int], int]
    seed: int = 0
    flops: Callable[[Arrays], Flops] = lambda arrays: Flops()  # forward, of a micro-batch
    held_out: HeldOut | None = None
    profile_folder: Place | None = None


def run_steps(
    engine: Any, train: TrainConfig, steps: Iterator[Step], reporter: Reporter, course: Course
) -> None:
    """Take the optimiser steps of the course; `steps` yields this rank's share of each.

    Raises FloatingPointError on every rank, with the ids of the rows, when a loss or a gradient is
    not finite; the weights are as before that step, or, for a gradient, lost.
    """
    held_out_loss = None
    with profiled(course.profile_folder, train.profile_steps) as profile:
        for step in range(course.start, course.total):
            reporter.step(_step(engine, train, steps, step, course))
            profile()
            done, last = step + 1, step + 1 == course.total
            if course.held_out is not None and (last or done % course.held_out.every == 0):
                report = course.held_out.run(engine, done)
                reporter.evaluation(report)
                held_out_loss = report.loss
            if done % train.checkpoint_every == 0 and not last:
                reporter.checkpoint(done, partial(_snapshot, engine, done), held_out_loss)


def _snapshot(engine: Any, step: int) -> Callable[[Path], None]:
    return snapshot(engine, step).write


def _step(
    engine: Any, train: TrainConfig, steps: Iterator[Step], step: int, course: Course
) -> StepReport:
    began = time.perf_counter()
    micro_batches = next(steps)
    waited = time.perf_counter() - began
    rate = learning_rate(train, step, course.total, course.epoch_of(step))
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    # Dropout (of adapters) follows from the step, so a resumed run draws what the unbroken one did.
    torch.manual_seed(hash((course.seed, step, dist.get_rank())))
    sums = _Sums.of(engine, micro_batches, course.flops)
    loss, norm = _optimise(engine, micro_batches, sums, step)
    if not math.isfinite(norm):
        raise FloatingPointError(
            f"The gradient of step {step + 1} is {norm}; its rows: {_all_ids(micro_batches)}."
        )
    return StepReport(
        step=step + 1,
        loss=loss,
        tokens=round(sums.tokens),
        rows=round(sums.rows),
        ranks=dist.get_world_size(),
        learning_rate=rate,
        grad_norm=norm,
        forward_flops=sums.flops,
        recomputed=train.gradient_checkpointing,
        seconds=time.perf_counter() - began,
        data_wait_seconds=waited,
        peak_flops=peak_flops(train.peak_tflops),
        memory_bytes=memory_bytes(engine.device),
    )


@dataclass(frozen=True, slots=True)
class _Sums:
    """Of a step's rows over all ranks, and this rank's tensors."""

    tensors: list[Tensors]
    weights: torch.Tensor  # [terms]
    rows: float
    flops: float

    @property
    def tokens(self) -> float:
        return float(self.weights[0])

    @classmethod
    def of(cls, engine: Any, batches: Step, flops: Callable[[Arrays], Flops]) -> Self:
        tensors = [on_device(batch.arrays, engine.device) for batch in batches]
        weights = torch.stack([engine.module.weights(**batch).double() for batch in tensors])
        counts = (
            float(sum(len(batch.row_ids) for batch in batches)),
            sum(flops(batch.arrays).total for batch in batches),
        )
        sums = torch.cat((weights.sum(0), weights.new_tensor(counts)))
        dist.all_reduce(sums)
        return cls(tensors, sums[:-2], float(sums[-2]), float(sums[-1]))


def _optimise(engine: Any, batches: Step, sums: _Sums, step: int) -> tuple[float, float]:
    """Forward, backward and update; returns the loss of the global batch and its gradient's norm
    before clipping."""
    # DeepSpeed averages over ranks and over micro-batches: undo both, divide by the true weight.
    weights = sums.weights.clamp_min(1)
    scale = dist.get_world_size() * len(sums.tensors) / weights
    total = torch.zeros_like(weights)
    for number, batch in enumerate(sums.tensors, 1):
        terms = engine(**batch)
        total += terms.detach()
        if number == len(sums.tensors):  # before anything is changed
            dist.all_reduce(total)
            if not torch.isfinite(total).all():
                raise FloatingPointError(_blame(engine, batches, sums, step))
        engine.backward((terms * scale).sum().float())
        norm = _norm_of_plain_gradients(engine)
        engine.step()
    told = engine.get_global_grad_norm() if norm is None else norm
    return float((total / weights).sum()), float(told or 0.0)


def _norm_of_plain_gradients(engine: Any) -> float | None:
    """Of what torch's own optimizer steps with, at stage 0 in float32: DeepSpeed tells the norm of
    its own optimizers alone. None where it will tell."""
    if hasattr(engine.optimizer, "_global_grad_norm"):
        return None
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def _blame(engine: Any, batches: Step, sums: _Sums, step: int) -> str:
    """Which rows of the step have a loss that is not finite, asked of every rank."""
    found: list[str] = []
    with torch.no_grad():
        for batch, tensors in zip(batches, sums.tensors, strict=True):
            bad = (~torch.isfinite(engine(call="row_logprobs", **tensors))).tolist()
            if len(bad) < len(batch.row_ids):  # packed: one of them all
                bad = [any(bad)] * len(batch.row_ids)
            # A preference batch has pairs behind its rows, which have no ids.
            found += [i for i, b in zip(batch.row_ids, bad, strict=False) if b]
    ids = _gathered(found)
    rows = f"of the rows {', '.join(ids)}" if ids else f"together, rows {_all_ids(batches)}"
    return f"The loss of step {step + 1} is not finite: {rows}."


def _all_ids(batches: Step) -> str:
    return ", ".join(_gathered([i for batch in batches for i in batch.row_ids]))


def _gathered(ids: list[str]) -> list[str]:
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, ids)
    return [i for some in everyone for i in some]
