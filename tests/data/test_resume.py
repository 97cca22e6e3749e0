"""A run that is killed, again and again, reads what an unbroken one reads: on a real cluster."""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchTrainer

from stagebeam.data.ledger import Ledger, Plan
from stagebeam.data.order import read_rows
from stagebeam.data.stream import ingest_config, training_dataset, worker_batches
from stagebeam.records import Example
from stagebeam.training.checkpoint import checkpoint_name, read_ledger, start_step, write_ledger

pytestmark = pytest.mark.usefixtures("cluster")

EPOCHS, BATCH = 2, 4
EVERY = 4  # steps between checkpoints
Kill = tuple[int, int, str]  # step, rank, before or after the step


@pytest.fixture(scope="module")
def plan(shards: Path) -> Plan:
    return Plan(read_rows(shards, "train", {}), BATCH, 2, epochs=EPOCHS, seed=5, window=2)


def encode(examples: list[Example]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    return {"answers": np.array([int(e.answer or 0) for e in examples])}, {}


def train(shards: Path, plan: Plan, folder: Path, kills: list[Kill]) -> dict[int, list[str]]:
    """The rows that each step of the model at the end was trained on, in their order.

    They travel in the checkpoints, as weights do: the rows of a step that was lost with a worker
    do not count. Each kill, of (step, rank, before or after it), happens once.
    """

    def loop() -> None:
        rank = ray.train.get_context().get_world_rank()
        share = broadcast_from_rank_zero  # ranks meet in it, as they do in a step
        start, read = 0, {}
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as saved:
                start = read_ledger(Path(saved)).start_step(plan)
                read = merged(Path(saved)) if rank == 0 else {}
        for batch in worker_batches(ray.train.get_dataset_shard("train"), plan, rank, start):
            assert [f"row-{n:03d}" for n in batch.arrays["answers"]] == batch.row_ids
            share(batch.step)
            die_if_due(kills, folder, (batch.step, rank, "before"))
            read[batch.step] = batch.row_ids
            die_if_due(kills, folder, (batch.step, rank, "after"))
            if (batch.step + 1) % EVERY and batch.step + 1 < plan.total_steps:
                continue
            with tempfile.TemporaryDirectory() as made:
                (Path(made) / f"{rank}.json").write_text(json.dumps(read))
                if rank == 0:
                    write_ledger(Ledger.after(plan, batch.step + 1), Path(made))
                name = checkpoint_name(batch.step + 1, share(os.urandom(3).hex()))
                saved = Checkpoint.from_directory(made)
                ray.train.report({}, checkpoint=saved, checkpoint_dir_name=name)

    run = folder / "run"
    result = TorchTrainer(
        loop,
        scaling_config=ScalingConfig(
            num_workers=plan.world_size, resources_per_worker={"CPU": 0.5 / plan.world_size}
        ),
        run_config=RunConfig(
            name="run",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=len(kills)),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
        datasets={
            "train": lambda: training_dataset(shards, plan, start_step(plan, run), encode, 1)
        },
        dataset_config=ingest_config(plan.world_size),
    ).fit()
    assert len(list(folder.glob("killed-*"))) == len(kills)
    with result.checkpoint.as_directory() as saved:
        return merged(Path(saved))


def merged(checkpoint: Path) -> dict[int, list[str]]:
    """The rows of each step, those of rank 0 first."""
    whole: dict[int, list[str]] = {}
    for file in sorted(checkpoint.glob("[0-9].json")):
        for step, row_ids in json.loads(file.read_text()).items():
            whole.setdefault(int(step), []).extend(row_ids)
    return whole


def die_if_due(kills: list[Kill], folder: Path, now: Kill) -> None:
    mark = folder / "killed-{}-{}-{}".format(*now)
    if now in kills and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def planned(plan: Plan) -> dict[int, list[str]]:
    return {
        step: [f"row-{row:03d}" for row in plan.step_rows(step)] for step in range(plan.total_steps)
    }


def random_kills(plan: Plan, count: int) -> list[Kill]:
    places = [
        (step, rank, when)
        for step in range(plan.total_steps)
        for rank in range(plan.world_size)
        for when in ("before", "after")
    ]
    return random.Random(0).sample(places, count)


def assert_each_epoch_is_the_data_set(read: dict[int, list[str]], plan: Plan) -> None:
    everything = [f"row-{row:03d}" for row in range(len(plan.rows))]
    counts = Counter(row for rows in read.values() for row in rows)
    assert counts == Counter(everything * EPOCHS)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_kills_at_random_leave_the_order_of_global_batches(
    shards: Path, plan: Plan, tmp_path: Path
) -> None:
    read = train(shards, plan, tmp_path, random_kills(plan, 20))
    assert read == planned(plan)
    assert_each_epoch_is_the_data_set(read, plan)


@pytest.mark.slow
def test_from_two_ranks_to_one_and_back_each_epoch_is_the_data_set(
    shards: Path, plan: Plan, tmp_path: Path
) -> None:
    alone = replace(plan, world_size=1)
    train(shards, replace(plan, max_steps=5), tmp_path, [])
    train(shards, replace(alone, max_steps=14), tmp_path, [])  # from one epoch into the next
    read = train(shards, plan, tmp_path, [])
    assert read == planned(plan)
    assert_each_epoch_is_the_data_set(read, plan)
