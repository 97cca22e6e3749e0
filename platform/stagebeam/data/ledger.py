"""In which order rows are trained on, and which of them have been.

The order of an epoch follows from (seed, epoch) alone, and a step consumes one whole global batch
of it. So the rows that a run has consumed at a step boundary are a prefix of that order, at any
world size, and one number (the steps done) says which rows are left.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, rows: int) -> np.ndarray:
    """The permutation of 0..rows-1 that an epoch follows ([rows], int64, read-only).

    Sorted by the raw bits of a counter-based generator: NumPy keeps those the same between its
    releases, which it does not promise of `permutation`.
    """
    key = np.random.SeedSequence([seed % 2**64, epoch])
    order = np.argsort(np.random.Philox(key).random_raw(rows), kind="stable")
    order.setflags(write=False)
    return order


@dataclass(frozen=True, slots=True)
class Plan:
    """Which rows each rank reads at each step.

    An epoch drops the rows after its last whole global batch (fewer than one batch, other ones in
    each epoch). Raises ValueError if there is less than one global batch, or if a batch does not
    divide over ranks and micro-batches.
    """

    rows: int
    global_batch_size: int
    world_size: int
    gradient_accumulation_steps: int = 1
    epochs: int = 1
    seed: int = 0
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if self.global_batch_size % (self.world_size * self.gradient_accumulation_steps):
            raise ValueError(
                f"A global batch of {self.global_batch_size} rows does not divide over "
                f"{self.world_size} ranks x {self.gradient_accumulation_steps} micro-batches."
            )
        if self.rows < self.global_batch_size:
            raise ValueError(
                f"There are {self.rows} rows to train on, "
                f"fewer than one global batch of {self.global_batch_size}."
            )

    @property
    def micro_batch_size(self) -> int:
        """Rows that one rank reads at a time."""
        return self.global_batch_size // (self.world_size * self.gradient_accumulation_steps)

    @property
    def steps_per_epoch(self) -> int:
        return self.rows // self.global_batch_size

    @property
    def total_steps(self) -> int:
        steps = self.steps_per_epoch * self.epochs
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def step_rows(self, step: int) -> np.ndarray:
        """Row numbers of one optimiser step ([global_batch_size])."""
        assert 0 <= step < self.total_steps, (step, self.total_steps)
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self.global_batch_size
        order = epoch_order(self.seed, epoch, self.rows)
        return order[start : start + self.global_batch_size]

    def rank_rows(self, step: int, rank: int, micro: int) -> np.ndarray:
        """Row numbers of one rank's micro-batch of a step ([micro_batch_size])."""
        shape = (self.gradient_accumulation_steps, self.world_size, self.micro_batch_size)
        return self.step_rows(step).reshape(shape)[micro, rank]


@dataclass(frozen=True, slots=True)
class Ledger:
    """The rows that optimiser steps have consumed, as saved inside a checkpoint.

    `step` counts the global steps done since the start of training, `epoch` is the one that the
    next step belongs to. `rows` and `global_batch_size` are kept to notice that a checkpoint is
    continued on other data, where the prefix would mean other rows.
    """

    seed: int
    epoch: int
    step: int
    rows: int
    global_batch_size: int

    @classmethod
    def after(cls, plan: Plan, step: int) -> Self:
        """The ledger once `step` steps of the plan are done."""
        epoch = step // plan.steps_per_epoch
        return cls(plan.seed, epoch, step, plan.rows, plan.global_batch_size)

    def start_step(self, plan: Plan) -> int:
        """The step at which `plan`, of any world size, goes on.

        Raises ValueError if the plan would read other rows than the ones this ledger leaves.
        """
        then = (self.seed, self.rows, self.global_batch_size)
        now = (plan.seed, plan.rows, plan.global_batch_size)
        if then != now:
            raise ValueError(
                f"The checkpoint was trained with (seed, rows, global_batch_size) = {then} "
                f"and cannot be continued with {now}."
            )
        return self.step

    @property
    def remaining(self) -> np.ndarray:
        """Row numbers of this epoch that are still to be read, in order."""
        steps_per_epoch = self.rows // self.global_batch_size
        consumed = (self.step - self.epoch * steps_per_epoch) * self.global_batch_size
        whole = steps_per_epoch * self.global_batch_size
        return epoch_order(self.seed, self.epoch, self.rows)[consumed:whole]

    def to_dict(self) -> dict[str, int]:
        """A JSON object."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Self:
        """Read back `to_dict`; raises ValueError if it is not such an object."""
        try:
            return cls(**saved)
        except TypeError:
            raise ValueError(f"This is not the ledger of a checkpoint: {saved!r}.") from None
