"""A training loop in one process, for the models that benchmarks ask."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch

from stagebeam.models.encoder import Arrays
from stagebeam.training.contracts import Objective


def teach(
    objective: Objective, batches: Iterable[Arrays], steps: int, learning_rate: float
) -> None:
    """AdamW over one cycle of the rate: an eighth of the steps up, the rest down."""
    optimizer = torch.optim.AdamW(
        objective.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.05
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, steps, pct_start=0.125, cycle_momentum=False
    )
    for arrays in islice(batches, steps):
        batch = {key: torch.from_numpy(value) for key, value in arrays.items()}
        loss = (objective(**batch) / objective.weights(**batch)).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        schedule.step()
