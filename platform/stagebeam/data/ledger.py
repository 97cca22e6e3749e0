"""Which rows each step of a run reads, and which have been read.

The epochs' orders follow one another without a gap, and a step takes the next global batch of
them. So the rows that a run has read at a step boundary are a prefix of that sequence, at any world
size, and one number (the steps done) says which rows are left. Only the rows behind the last whole
batch of the last epoch are never read.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np

from stagebeam.data.order import Rows, epoch_order, grouped


@dataclass(frozen=True, slots=True)
class Plan:
    """Which rows each rank reads at each step.

    `rows` says how long they are and how often an epoch reads them; a plain number has each row
    read once an epoch. `window` batches at a time are sorted by length (0: none; needs `Rows`), and
    each batch inside itself, so that the rows of a micro-batch are of like length, and those of
    the ranks' micro-batches too.

    Where a batch does not divide over ranks and micro-batches, some of these have a row more than
    others, or where there are more of them than rows, a row and none.

    Raises ValueError if there is less than one global batch.
    """

    rows: Rows | int
    global_batch_size: int
    world_size: int
    gradient_accumulation_steps: int = 1
    epochs: int = 1
    seed: int = 0
    max_steps: int | None = None
    window: int = 0

    def __post_init__(self) -> None:
        assert not self.window or isinstance(self.rows, Rows), "only Rows have lengths"
        if self.epoch_length * self.epochs < self.global_batch_size:
            raise ValueError(
                f"There are {self.epoch_length} rows to train on in each of {self.epochs} epochs, "
                f"fewer than one global batch of {self.global_batch_size}."
            )

    @property
    def epoch_length(self) -> int:
        """Rows that an epoch reads."""
        return self.rows if isinstance(self.rows, int) else self.rows.epoch_length

    @property
    def micro_batches(self) -> int:
        """Of a step, over all ranks."""
        return self.world_size * self.gradient_accumulation_steps

    @property
    def micro_batch_size(self) -> int:
        """Most rows that one rank reads at a time."""
        return -(-self.global_batch_size // self.micro_batches)

    def at(self, world_size: int) -> Self:
        """The same steps on other ranks, in micro-batches that are no larger."""
        micro_batches = -(-self.micro_batches // world_size)
        return replace(self, world_size=world_size, gradient_accumulation_steps=micro_batches)

    @property
    def total_steps(self) -> int:
        steps = self.epoch_length * self.epochs // self.global_batch_size
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def unread(self) -> int:
        """Rows at the end of the last epoch that make no whole batch, so that no step reads them;
        0 where `max_steps` ends the run before."""
        steps, left = divmod(self.epoch_length * self.epochs, self.global_batch_size)
        return left if steps == self.total_steps else 0

    def epoch_of(self, step: int) -> int:
        """The epoch that the first row of a step belongs to."""
        return step * self.global_batch_size // self.epoch_length

    def step_rows(self, step: int) -> np.ndarray:
        """Row numbers of one optimiser step ([global_batch_size])."""
        assert 0 <= step < self.total_steps, (step, self.total_steps)
        rows = self.read(step * self.global_batch_size, (step + 1) * self.global_batch_size)
        if self.window:
            assert isinstance(self.rows, Rows)
            rows = rows[np.argsort(self.rows.sizes[rows], kind="stable")]
        return rows

    def rank_rows(self, step: int, rank: int, micro: int) -> np.ndarray:
        """Row numbers of one rank's micro-batch of a step ([micro_batch_size], or less)."""
        shares = np.array_split(self.step_rows(step), self.micro_batches)
        return shares[micro * self.world_size + rank]

    def read(self, start: int, end: int) -> np.ndarray:
        """Row numbers from place `start` to `end` of all epochs' orders in a row
        ([end - start])."""
        length = self.epoch_length
        parts = []
        while start < end:
            epoch, place = divmod(start, length)
            parts.append(self._order(epoch)[place : place + end - start])
            start += len(parts[-1])
        return np.concatenate(parts) if parts else np.array([], np.int64)

    def _order(self, epoch: int) -> np.ndarray:
        return _planned_order(
            self.seed, epoch, self.rows, self.global_batch_size, self.epoch_length, self.window
        )


@lru_cache(maxsize=4)
def _planned_order(
    seed: int, epoch: int, rows: Rows | int, batch: int, length: int, window: int
) -> np.ndarray:
    order = epoch_order(seed, epoch, rows)
    if not window:
        return order
    assert isinstance(rows, Rows)
    head = min(-epoch * length % batch, length)  # ends the batch that the epoch before began
    return grouped(order, rows.sizes, batch, window, head, (seed, epoch))


@dataclass(frozen=True, slots=True)
class Ledger:
    """The rows that optimiser steps have consumed, as saved inside a checkpoint.

    `step` counts the global steps done since the start of training, `epoch` is the one that the
    next step begins in. The rest is what the rows' order follows from, kept to notice that a
    checkpoint is continued on other data, where the prefix would mean other rows.
    """

    seed: int
    epoch: int
    step: int
    rows: int
    global_batch_size: int
    window: int = 0
    fingerprint: str = ""  # of the rows' lengths and weights

    @classmethod
    def after(cls, plan: Plan, step: int) -> Self:
        """The ledger once `step` steps of the plan are done."""
        return cls(plan.seed, plan.epoch_of(step), step, *_order_of(plan))

    def start_step(self, plan: Plan) -> int:
        """The step at which `plan`, of any world size, goes on.

        Raises ValueError if the plan would read other rows than the ones this ledger leaves.
        """
        then = (self.seed, self.rows, self.global_batch_size, self.window, self.fingerprint)
        now = (plan.seed, *_order_of(plan))
        names = ("seed", "number of rows", "global batch", "length window", "rows or weights")
        if then != now:
            other = [name for name, a, b in zip(names, then, now, strict=True) if a != b]
            raise ValueError(
                f"The checkpoint was trained with another {' and '.join(other)}: it cannot be "
                "continued, as the order of the rows would be another one."
            )
        return self.step

    def remaining(self, plan: Plan) -> np.ndarray:
        """Row numbers of this epoch that are still to be read, in order.

        Raises ValueError as `start_step` does.
        """
        start = self.start_step(plan) * plan.global_batch_size
        return plan.read(start, (self.epoch + 1) * plan.epoch_length)

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Self:
        """Read back `to_dict`; raises ValueError if it is not such an object."""
        try:
            return cls(**saved)
        except TypeError:
            raise ValueError(f"This is not the ledger of a checkpoint: {saved!r}.") from None


def _order_of(plan: Plan) -> tuple[int, int, int, str]:
    rows = plan.rows
    count, print_ = (rows, "") if isinstance(rows, int) else (len(rows), rows.fingerprint)
    return count, plan.global_batch_size, plan.window, print_
