"""The stream on a real Ray cluster, under a real TorchTrainer."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from stagebeam.data.ledger import Plan
from stagebeam.data.stream import Encode, ingest_config, training_dataset, worker_batches
from stagebeam.data.writing import write_shards
from stagebeam.recipe import DataConfig
from stagebeam.records import Example

pytestmark = pytest.mark.usefixtures("cluster")

ROWS = 46
PLAN = Plan(
    ROWS, global_batch_size=8, world_size=2, gradient_accumulation_steps=2, epochs=2, seed=3
)
ALONE = replace(PLAN, world_size=1)
Encoded = tuple[dict[str, np.ndarray], dict[str, str]]
# Steps at which the world size changes; the second lies in the next epoch, as the one before it
# does in both.
FIRST, SECOND = 3, 6


def ids(rows: np.ndarray) -> list[str]:
    return [f"row-{row:03d}" for row in rows]


@pytest.fixture(scope="module")
def encode(tmp_path_factory: pytest.TempPathFactory) -> Encode:
    """Arrays of a length that differs from batch to batch, as padded token ids do. One batch takes
    long, so that later ones overtake it where there are CPUs for both."""
    slow = int(PLAN.step_rows(1)[0])
    folder = tmp_path_factory.mktemp("loads")

    class Numbers:
        loaded = False

        def __call__(self, examples: list[Example]) -> Encoded:
            if not self.loaded:
                (folder / f"{os.getpid()}-{time.time_ns()}").touch()
                self.loaded = True
            numbers = [int(e.answer or 0) for e in examples]
            time.sleep(2.0 if slow in numbers else 0.0)
            ragged = np.zeros((len(numbers), max(numbers) + 1), np.uint8)
            refused = {e.id: "unlucky" for e in examples if e.answer == "13"}
            return {"numbers": np.array(numbers), "ragged": ragged}, refused

    encode = Numbers()
    encode.folder = folder  # type: ignore[attr-defined]
    return encode


def train(
    shards: Path, encode: Encode, plan: Plan, start: int, folder: Path, cpus: float
) -> list[list[Any]]:
    """What each rank received, as a training worker sees it: [rank][batch] -> step, micro, ids.

    The ranks together reserve `cpus` of the cluster's two CPUs.
    """

    def loop() -> None:
        rank = ray.train.get_context().get_world_rank()
        iterator = ray.train.get_dataset_shard("train")
        came = []
        for batch in worker_batches(iterator, plan, rank, start):
            numbers = batch.arrays["numbers"]
            assert [f"row-{n:03d}" for n in numbers] == batch.row_ids
            assert batch.arrays["ragged"].shape == (len(numbers), max(numbers) + 1)
            assert batch.refused == ({"row-013": "unlucky"} if 13 in numbers else {})
            came.append([batch.step, batch.micro, batch.row_ids])
        (folder / f"{rank}.json").write_text(json.dumps(came))

    TorchTrainer(
        loop,
        scaling_config=ScalingConfig(
            num_workers=plan.world_size, resources_per_worker={"CPU": cpus / plan.world_size}
        ),
        run_config=RunConfig(storage_path=str(folder / "runs")),
        datasets={"train": lambda: training_dataset(shards, plan, start, encode, 1)},
        dataset_config=ingest_config(plan.world_size),
    ).fit()
    return [json.loads((folder / f"{r}.json").read_text()) for r in range(plan.world_size)]


@pytest.fixture(scope="module")
def unbroken(
    shards: Path, encode: Encode, tmp_path_factory: pytest.TempPathFactory
) -> list[list[Any]]:
    return train(shards, encode, PLAN, 0, tmp_path_factory.mktemp("unbroken"), 0.5)


def expected(plan: Plan, start: int) -> list[list[Any]]:
    return [
        [
            [step, micro, ids(plan.rank_rows(step, rank, micro))]
            for step in range(start, plan.total_steps)
            for micro in range(plan.gradient_accumulation_steps)
        ]
        for rank in range(plan.world_size)
    ]


def test_each_rank_receives_its_rows_in_the_plans_order(unbroken: list[list[Any]]) -> None:
    assert unbroken == expected(PLAN, 0)


def test_a_run_that_changes_its_world_size_reads_each_row_once_an_epoch(
    shards: Path, encode: Encode, unbroken: list[list[Any]], tmp_path: Path
) -> None:
    alone_dir, tail_dir = tmp_path / "alone", tmp_path / "tail"
    alone_dir.mkdir()
    tail_dir.mkdir()
    # Encoding gets by on the half of a CPU that the ranks leave.
    alone = train(shards, encode, replace(ALONE, max_steps=SECOND), FIRST, alone_dir, 1.5)
    tail = train(shards, encode, PLAN, SECOND, tail_dir, 1.5)
    assert tail == [[batch for batch in rank if batch[0] >= SECOND] for rank in unbroken]
    head = [[batch for batch in rank if batch[0] < FIRST] for rank in unbroken]
    read = Counter(i for rank in (*head, *alone, *tail) for _, _, row_ids in rank for i in row_ids)
    unread = ids(PLAN.read(2 * ROWS - PLAN.unread, 2 * ROWS))
    assert len(unread) == PLAN.unread == 4
    assert read == Counter(ids(np.arange(ROWS)) * 2) - Counter(unread)


def test_encode_loads_once_in_a_process(encode: Encode, unbroken: list[list[Any]]) -> None:
    loads = [path.name.split("-")[0] for path in encode.folder.iterdir()]  # type: ignore[attr-defined]
    # One process may serve several data sets, never more loads than that.
    assert 1 <= max(map(loads.count, loads)) <= 3
    assert len(loads) < PLAN.total_steps


def test_a_batch_that_was_made_for_another_place_is_noticed(shards: Path, encode: Encode) -> None:
    alone = replace(ALONE, max_steps=4)
    iterator = training_dataset(shards, alone, 1, encode, 2).iterator()
    with pytest.raises(AssertionError, match=r"step, rank \(1, 0\) came to \(0, 0\)"):
        next(worker_batches(iterator, alone, 0, 0))
    with pytest.raises(AssertionError, match=r"came to \(1, 1\)"):
        next(worker_batches(iterator, alone, 1, 1))
    with pytest.raises(ValueError, match="zip"):
        list(worker_batches(iterator, replace(alone, max_steps=5), 0, 1))


def test_encoding_runs_ahead_by_a_number_of_bytes(shards: Path, tmp_path: Path) -> None:
    plan = replace(ALONE, gradient_accumulation_steps=1, epochs=20, max_steps=100)
    assert plan.total_steps == 100
    large = np.zeros(8 << 20, np.uint8)  # sixteen of them are what may wait

    def encode(examples: list[Example]) -> Encoded:
        (tmp_path / str(time.time_ns())).touch()
        return {"x": large}, {}

    (iterator,) = training_dataset(shards, plan, 0, encode, 2).streaming_split(1, equal=True)
    batches = worker_batches(iterator, plan, 0, 0)
    next(batches)
    made, before = 1, 0
    while made > before:  # until it runs no further ahead
        time.sleep(2.0)
        made, before = len(list(tmp_path.iterdir())), made
    # Tasks that run when the limit is reached finish: two CPUs hold four.
    assert made <= 1 + 16 + 4 + 2


def test_only_the_split_train_is_read(make_example: Callable[..., Example], tmp_path: Path) -> None:
    examples = [make_example(n, split="test" if n % 2 else "train") for n in range(8)]
    write_shards(examples, tmp_path / "s", DataConfig(shards=tmp_path / "s"))
    with pytest.raises(ValueError, match="4 rows of the split train, the plan is for 8"):
        training_dataset(tmp_path / "s", Plan(8, 2, 1), 0, dict, 1)  # type: ignore[arg-type]
    plan = Plan(4, 2, 1)

    def encode(examples: list[Example]) -> Encoded:
        return {}, {}

    iterator = training_dataset(tmp_path / "s", plan, 0, encode, 1).iterator()
    read = {i for batch in worker_batches(iterator, plan, 0, 0) for i in batch.row_ids}
    assert read == {"row-000", "row-002", "row-004", "row-006"}


def test_a_plan_that_is_done_has_no_stream(shards: Path, encode: Encode) -> None:
    with pytest.raises(ValueError, match="All 11 steps of the plan are done"):
        training_dataset(shards, PLAN, 11, encode, 1)
