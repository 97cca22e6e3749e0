"""How long an epoch of training takes on many GPUs, from the cost of a row.

A micro-step computes, waits for rows, and moves weights and gradients (ZeRO-3). What of that
overlaps is not known without the machine, so there are two figures: everything at once, and one
after another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stagebeam.capacity.costs import TrainingCosts

# ZeRO-3 gathers the weights in the forward and in the backward pass, and scatters the gradients
# (arXiv 1910.02054, section 7.2.2).
_TIMES_MOVED = 3


@dataclass(frozen=True, slots=True)
class MicroStep:
    """Seconds of each part, if it were alone."""

    compute_s: float
    rows_s: float
    traffic_s: float

    @property
    def longest(self) -> str:
        """Which part the others can hide behind."""
        parts = {"compute": self.compute_s, "rows": self.rows_s, "traffic": self.traffic_s}
        return max(parts, key=parts.__getitem__)


@dataclass(frozen=True, slots=True)
class Epoch:
    """A prediction: hours where everything overlaps, and where nothing does."""

    rows: int
    gpus: int
    global_batch: int
    steps: int
    hours: float
    hours_in_turn: float
    longest: str  # part of a step


def micro_step(costs: TrainingCosts, gpus: int) -> MicroStep:
    """Of one GPU among `gpus`, for its `micro_batch_rows`."""
    rows = costs.micro_batch_rows
    weights = costs.parameters * costs.bytes_a_weight / 1e9  # GB
    nodes = math.ceil(gpus / costs.gpus_a_node)
    on_node = min(gpus, costs.gpus_a_node)
    # All weights reach each GPU over its node's links, and each node once over all its adapters.
    inside = weights * (gpus - 1) / gpus / costs.node_gb_s
    between = weights * (nodes - 1) / nodes / (costs.network_gb_s * on_node)
    return MicroStep(
        compute_s=rows * costs.flops_a_row / (costs.gpu_tflops * 1e12 * costs.mfu),
        rows_s=rows * costs.encode_s / (costs.cores_a_gpu * costs.stream_share),
        traffic_s=_TIMES_MOVED * max(inside, between),
    )


def epoch(costs: TrainingCosts, rows: int, gpus: int) -> Epoch:
    """Of `rows` rows, one micro-batch a GPU and step. Raises ValueError for less than one of
    either."""
    if rows < 1 or gpus < 1:
        raise ValueError(f"An epoch has at least one row and one GPU, got {rows} and {gpus}.")
    step = micro_step(costs, gpus)
    batch = costs.micro_batch_rows * gpus
    steps = math.ceil(rows / batch)
    parts = (step.compute_s, step.rows_s, step.traffic_s)
    return Epoch(
        rows, gpus, batch, steps, steps * max(parts) / 3600, steps * sum(parts) / 3600, step.longest
    )
