"""What passes between the loop, what it trains, and where it reports to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

Batch = Mapping[str, np.ndarray]
OnRefused = Callable[[dict[str, str]], None]  # ids of rows that are not trained on, and why


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimiser step, the same numbers on every rank except the times."""

    step: int  # steps done, this one included
    loss: float  # of the global batch; in nats a token for supervised training
    tokens: int  # with loss, in the global batch
    learning_rate: float
    seconds: float  # the step, waiting for data included
    data_wait_seconds: float  # of which waiting for the next batch


class Reporter(Protocol):
    """Where progress and checkpoints go."""

    def step(self, report: StepReport) -> None: ...

    def checkpoint(self, step: int, save: Callable[[Path], None]) -> None:
        """Called on every rank; `save(folder)` writes this rank's share."""


class Objective(torch.nn.Module):
    """A model and what is minimised: a sum of terms, each a weighted mean over the global batch."""

    def forward(self, **batch: torch.Tensor) -> torch.Tensor:
        """The sum of each term over this batch, [terms]."""
        raise NotImplementedError

    def weights(self, **batch: torch.Tensor) -> torch.Tensor:
        """What each term is divided by (tokens, pairs, ...), summed over this batch, [terms]."""
        raise NotImplementedError
