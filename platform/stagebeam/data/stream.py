"""Training batches from shards to ranks, encoded by Ray Data on CPU workers.

One row of the data set is a rank's share of one step, a `parcel` (data/parcel.py). Rows run in the
order (step, rank), a block to a row, and `streaming_split` gives a block to the rank that has had
the fewest rows, the lowest such rank first. With the order preserved that deals the blocks to the
ranks in turn, each to the one it was made for, and leaves no tail to drop; `worker_batches` asserts
it. The stream runs through all epochs, so that nothing restarts between them.

Three things that are easily got wrong (Ray 2.60):

- Each step is one call of an encoder, and there is no other operator. `ray.data.range` and
  `repartition` bring tasks that ask for a whole CPU each, and wait for ever where the ranks hold
  nearly all of them.
- Ray Data merges and cuts what a task yields by `target_max_block_size`; with one byte, a row each.
- Ray Train replaces a data set's execution options, so they are given again in `ingest_config`.

Encoding runs ahead of the ranks by a fixed number of bytes a rank, whatever the epoch's size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import ray.train
from ray.data._internal.execution.execution_callback import ExecutionCallback

from stagebeam.data.heap import keep_freed_memory
from stagebeam.data.layout import TRAIN_SPLIT
from stagebeam.data.ledger import Plan
from stagebeam.data.parcel import Arrays, MicroBatch, Parcel, pack, unpack
from stagebeam.data.shards import ShardReader
from stagebeam.records import Example
from stagebeam.storage import Place, place_of

Encode = Callable[[list[Example]], tuple[Arrays, dict[str, str]]]

_LOOP_REST_S = 0.02
_ENCODER_CPUS = 0.5  # reserved for each encoder: on a small machine the ranks leave no whole one
_ENCODERS_A_RANK = 2  # at most: one encodes a hundred images a second
# Encoded batches that may wait in the object store, for each rank: seventy images of 560 px with 4
# tiles in uint8. With half of it encoders of 2 x 16 images a step idled a third of their time. Ray
# Data's own limit is a share of the store, which may be most of an epoch.
_AHEAD_BYTES = 256 << 20
_CALLS_AHEAD = 4  # an encoder's, so that it has its next step at once


def ingest_config(world_size: int) -> ray.train.DataConfig:
    """The `dataset_config` of a `TorchTrainer` that reads `training_dataset` on so many ranks.

    Blocks are dealt in order; preferring ranks that lie near a block would break it.
    """
    return ray.train.DataConfig(execution_options=_options(world_size), enable_shard_locality=False)


class IngestBySize(ray.train.DataConfig):
    """`ingest_config` for as many ranks as there are each time that they start. In the place of a
    data set stands what makes it for so many."""

    def configure(self, datasets: dict[str, Any], world_size: int, *nodes: Any, **more: Any) -> Any:
        made = {name: make(world_size) for name, make in datasets.items()}
        return ingest_config(world_size).configure(made, world_size, *nodes, **more)


def encoders_beside(world_size: int, cpus_per_rank: float) -> int:
    """How many encoders the ranks leave room for in the cluster; at least one."""
    free = ray.cluster_resources().get("CPU", 0.0) - world_size * cpus_per_rank
    return max(1, min(_ENCODERS_A_RANK * world_size, int(free / _ENCODER_CPUS + 1e-6)))


def _options(world_size: int) -> ray.data.ExecutionOptions:
    ahead = ray.data.ExecutionResources.for_limits(object_store_memory=world_size * _AHEAD_BYTES)
    return ray.data.ExecutionOptions(preserve_order=True, resource_limits=ahead)


def training_dataset(
    shards: str | Place, plan: Plan, start_step: int, encode: Encode, encoders: int
) -> ray.data.Dataset:
    """The micro-batches of steps `start_step` to the plan's last, for `worker_batches`.

    Only rows of the split `train` are read, and `plan.rows` are those. `encode` gives a
    micro-batch's arrays and the reasons why it refused rows, by id. `encoders` processes have a
    copy of it each for as long as the stream runs.

    Raises ValueError if the shards are not those of the plan, or no step is left.
    """
    shards = place_of(shards).absolute()
    rows = len(ShardReader(shards, TRAIN_SPLIT))
    planned = plan.rows if isinstance(plan.rows, int) else len(plan.rows)
    if rows != planned:
        raise ValueError(
            f"The shards in {shards} have {rows} rows of the split {TRAIN_SPLIT}, "
            f"the plan is for {planned}."
        )
    if start_step >= plan.total_steps:
        raise ValueError(f"All {plan.total_steps} steps of the plan are done.")
    steps = [{"step": step} for step in range(start_step, plan.total_steps)]
    dataset = ray.data.from_items(steps, override_num_blocks=len(steps)).map_batches(
        _Encoder,
        fn_constructor_args=(shards, plan, encode),
        compute=ray.data.ActorPoolStrategy(
            size=encoders, max_tasks_in_flight_per_actor=_CALLS_AHEAD
        ),
        batch_size=1,
        num_cpus=_ENCODER_CPUS,
    )
    dataset.context.target_max_block_size = 1
    dataset.context.custom_execution_callback_classes = [_Paced]
    dataset.context.execution_options = _options(plan.world_size)
    return dataset


def worker_batches(
    iterator: ray.data.DataIterator, plan: Plan, rank: int, start_step: int
) -> Iterator[MicroBatch]:
    """This rank's micro-batches in order. Their arrays lie in the object store and are read-only.

    `iterator` is `ray.train.get_dataset_shard` of the data set that `training_dataset` made with
    the same plan and start step.
    """
    blocks: Any = {"batch_size": None, "batch_format": "pyarrow"}
    parcels = iterator.iter_batches(**blocks)  # a block at a time
    # strict: a stream that ends early, or goes on, is an error like one out of order.
    for step, table in zip(range(start_step, plan.total_steps), parcels, strict=True):
        parcel = unpack(table)
        came = (parcel.step, parcel.rank)
        assert came == (step, rank), f"the parcel of step, rank {came} came to {(step, rank)}"
        yield from parcel.micro_batches


class _Paced(ExecutionCallback):
    """Lets the scheduling loop rest. While the ranks have enough to read no task runs, and Ray 2.60
    then turns the loop without waiting: 0.4 of a core, which small machines need for training."""

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(_LOOP_REST_S)


class _Encoder:
    """Reads the rows of one step and encodes each rank's micro-batches.

    Tasks would do but for Ray's habit of ending processes that idle for a second beyond the
    number of CPUs: each new one loads torch and transformers again, seconds of a core.
    """

    def __init__(self, shards: Place, plan: Plan, encode: Encode) -> None:
        keep_freed_memory()
        self._reader, self._plan, self._encode = ShardReader(shards, TRAIN_SPLIT), plan, encode

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[pa.Table]:
        step, plan = int(batch["step"][0]), self._plan
        for rank in range(plan.world_size):
            micro_batches = []
            for micro in range(plan.gradient_accumulation_steps):
                examples = self._reader.rows(plan.rank_rows(step, rank, micro))
                row_ids = [example.id for example in examples]
                micro_batches.append(MicroBatch(step, micro, *self._encode(examples), row_ids))
            yield pack(Parcel(step, rank, micro_batches))
