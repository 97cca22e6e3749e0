"""Training batches from shards to ranks, encoded by Ray Data on CPU workers.

One row of the data set is one micro-batch of one rank, as a pickled dict of NumPy arrays: batches
are padded to different lengths, so no tensor column would fit them all. Rows run in the order
(step, micro, rank), a block to a row, and `streaming_split` gives a block to the rank that has
had the fewest rows, the lowest such rank first. With the order preserved that deals the blocks to
the ranks in turn, each to the one it was made for, and leaves no tail to drop; `worker_batches`
asserts it. The stream runs through all epochs, so that nothing restarts between them.

Three things that are easily got wrong (Ray 2.60):

- There is one task a step, and no other operator. `ray.data.range` and `repartition` bring tasks
  that ask for a whole CPU each, and wait for ever where the ranks hold nearly all of them.
- Ray Data merges what a task yields up to `target_max_block_size`; one byte keeps rows apart.
- Ray Train replaces a data set's execution options, so they are given again in `ingest_config`.

Encoding runs ahead of the ranks by a fixed number of bytes a rank, whatever the epoch's size.
"""

from __future__ import annotations

import pickle
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.data
import ray.train
from ray.data._internal.execution.execution_callback import ExecutionCallback

from stagebeam.data.ledger import Plan
from stagebeam.data.shards import ShardReader
from stagebeam.records import Example

Arrays = dict[str, np.ndarray]
Encode = Callable[[list[Example]], Arrays]

TRAIN_SPLIT = "train"
_LOOP_REST_S = 0.02
# Reserved for encoding one step: half, because on a small machine the ranks leave no whole CPU, and
# not less, because each task that may run at a time is a process with a tokenizer.
_ENCODE_CPUS = 0.5
# Encoded batches that may wait in the object store, for each rank: eight of 4 images of 560 px with
# 4 tiles in uint8. Ray Data's own limit is a share of the store, which may be most of an epoch.
_AHEAD_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one rank computes on at a time: arrays as `encode` made them, and the rows' ids."""

    step: int
    micro: int
    arrays: Arrays
    row_ids: list[str]


def ingest_config(world_size: int) -> ray.train.DataConfig:
    """The `dataset_config` of a `TorchTrainer` that reads `training_dataset` on so many ranks.

    Blocks are dealt in order; preferring ranks that lie near a block would break it.
    """
    return ray.train.DataConfig(execution_options=_options(world_size), enable_shard_locality=False)


def _options(world_size: int) -> ray.data.ExecutionOptions:
    ahead = ray.data.ExecutionResources.for_limits(object_store_memory=world_size * _AHEAD_BYTES)
    return ray.data.ExecutionOptions(preserve_order=True, resource_limits=ahead)


def training_dataset(
    shards: str | Path, plan: Plan, start_step: int, encode: Encode
) -> ray.data.Dataset:
    """The micro-batches of steps `start_step` to the plan's last, for `worker_batches`.

    Only rows of the split `train` are read, and `plan.rows` is their number
    (`manifest.splits["train"]`). `encode` is pickled once and kept by each worker process, so what
    it loads lazily (a tokenizer) is loaded once in each.

    Raises ValueError if the shards are not those of the plan, or no step is left.
    """
    shards = Path(shards).absolute()
    rows = len(ShardReader(shards, TRAIN_SPLIT))
    if rows != plan.rows:
        raise ValueError(
            f"The shards in {shards} have {rows} rows of the split {TRAIN_SPLIT}, "
            f"the plan is for {plan.rows}."
        )
    if start_step >= plan.total_steps:
        raise ValueError(f"All {plan.total_steps} steps of the plan are done.")
    steps = [{"step": step} for step in range(start_step, plan.total_steps)]
    dataset = ray.data.from_items(steps, override_num_blocks=len(steps)).map_batches(
        _EncodeStep(shards, plan, encode, uuid.uuid4().hex),
        batch_size=1,
        num_cpus=_ENCODE_CPUS,
    )
    dataset.context.target_max_block_size = 1
    dataset.context.custom_execution_callback_classes = [_Paced]
    dataset.context.execution_options = _options(plan.world_size)
    return dataset


def worker_batches(
    iterator: ray.data.DataIterator, plan: Plan, rank: int, start_step: int
) -> Iterator[MicroBatch]:
    """This rank's micro-batches in order, each unpickled when it is due.

    `iterator` is `ray.train.get_dataset_shard` of the data set that `training_dataset` made with
    the same plan and start step.
    """
    due = (
        (step, micro)
        for step in range(start_step, plan.total_steps)
        for micro in range(plan.gradient_accumulation_steps)
    )
    # strict: a stream that ends early, or goes on, is an error like one out of order.
    for (step, micro), row in zip(due, iterator.iter_rows(), strict=True):
        came = (row["step"], row["micro"], row["rank"])
        assert came == (step, micro, rank), f"batch {came} came to {(step, micro, rank)}"
        yield MicroBatch(step, micro, pickle.loads(row["arrays"]), row["row_ids"])


class _Paced(ExecutionCallback):
    """Lets the scheduling loop rest. While the ranks have enough to read no task runs, and Ray 2.60
    then turns the loop without waiting: 0.4 of a core, which small machines need for training."""

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(_LOOP_REST_S)


@dataclass(frozen=True, slots=True)
class _EncodeStep:
    """Reads the rows of one step and encodes each rank's micro-batches."""

    shards: Path
    plan: Plan
    encode: Encode
    key: str  # of the data set; see _in_this_process

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, list[Any]]]:
        step = int(batch["step"][0])
        reader, encode = _in_this_process(self)
        for micro in range(self.plan.gradient_accumulation_steps):
            for rank in range(self.plan.world_size):
                examples = reader.rows(self.plan.rank_rows(step, rank, micro))
                arrays = pickle.dumps(encode(examples), protocol=pickle.HIGHEST_PROTOCOL)
                yield {
                    "step": [step],
                    "micro": [micro],
                    "rank": [rank],
                    "row_ids": [[example.id for example in examples]],
                    "arrays": [arrays],
                }


_opened: dict[str, tuple[ShardReader, Encode]] = {}


def _in_this_process(task: _EncodeStep) -> tuple[ShardReader, Encode]:
    """The reader and `encode` of this data set. Every task brings a fresh copy of `encode`; the
    first one's is kept, with what it has loaded."""
    if task.key not in _opened:
        _opened.clear()  # those of a worker group that is gone
        _opened[task.key] = (ShardReader(task.shards, TRAIN_SPLIT), task.encode)
    return _opened[task.key]
