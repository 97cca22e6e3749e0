"""What passes between the loop, what it trains, and where it reports to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from stagebeam.data.parcel import MicroBatch

Step = Sequence[MicroBatch]  # a rank's share of one optimiser step
Take = Callable[[], Callable[[Path], None]]
OnRefused = Callable[[dict[str, str]], None]  # ids of rows that are not trained on, and why


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimiser step, the same numbers on every rank except times and memory."""

    step: int  # steps done, this one included
    loss: float  # of the global batch; in nats a token for supervised training
    tokens: int  # with loss, in the global batch
    rows: int  # in the global batch
    ranks: int
    learning_rate: float
    grad_norm: float  # before clipping
    forward_flops: float  # of the global batch, on tokens and images that are there
    recomputed: bool  # whether activations are computed again for the backward pass
    seconds: float  # the step, waiting for data included
    data_wait_seconds: float  # of which waiting for the next batch
    peak_flops: float | None  # of one device a second, where known
    memory_bytes: int  # most that this rank's device, or its process on a CPU, has held


@dataclass(frozen=True, slots=True)
class Sample:
    """What the model answered to a held-out row."""

    row_id: str
    text: str


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Held-out rows after some steps; on rank 0 with the samples of all ranks."""

    step: int
    loss: float  # nats a token
    tokens: int
    samples: tuple[Sample, ...]


class Reporter(Protocol):
    """Where progress and checkpoints go."""

    def step(self, report: StepReport) -> None: ...

    def evaluation(self, report: EvaluationReport) -> None: ...

    def checkpoint(self, step: int, take: Take, loss: float | None) -> None:
        """Called on every rank. `take()` copies this rank's share of the training's state out of
        the device, now, and gives what writes it to a folder, later and on any thread. `loss` is
        the last held-out one."""


class Objective(torch.nn.Module):
    """A model and what is minimised: a sum of terms, each a weighted mean over the global batch.

    All that runs the model goes through `forward`: DeepSpeed gathers weights by its hooks.
    """

    def forward(self, call: str = "terms", **arguments: Any) -> Any:
        """The method `call` of these arguments."""
        return getattr(self, call)(**arguments)

    def terms(self, **batch: torch.Tensor) -> torch.Tensor:
        """The sum of each term over this batch, [terms]."""
        raise NotImplementedError

    def weights(self, **batch: torch.Tensor) -> torch.Tensor:
        """What each term is divided by (tokens, pairs, ...), summed over this batch, [terms]."""
        raise NotImplementedError

    def row_logprobs(self, **batch: torch.Tensor) -> torch.Tensor:
        """Summed log-probability of each row's labelled tokens, [B]."""
        raise NotImplementedError

    def answers(self, max_new_tokens: int, synced: bool, **batch: torch.Tensor) -> torch.Tensor:
        """Greedy answers to prompts that are padded on the left, [B, new tokens]; `synced` where
        all ranks must run as long as the longest."""
        raise NotImplementedError
