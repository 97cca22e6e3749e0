"""Shards in an S3 bucket: written, finished after a kill, read and streamed as on a disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from object_store import names

from stagebeam import storage
from stagebeam.data import work as work_module
from stagebeam.data.ledger import Plan
from stagebeam.data.manifest import read_manifest
from stagebeam.data.order import read_rows
from stagebeam.data.parcel import unpack
from stagebeam.data.shards import ShardReader, iter_examples
from stagebeam.data.stream import training_dataset
from stagebeam.data.work import Work
from stagebeam.data.writing import finished, write_shards
from stagebeam.recipe import DataConfig
from stagebeam.records import Example
from stagebeam.storage import Place, RemotePath


@pytest.fixture(scope="module")
def remote(bucket: RemotePath, rows: list[Example]) -> RemotePath:
    folder = bucket / "some" / "shards"
    write_shards(rows, folder, DataConfig(shards=folder, rows_per_shard=16))
    return folder


def contents(folder: Place) -> dict[str, bytes]:
    files = names(folder) if isinstance(folder, RemotePath) else [p.name for p in folder.iterdir()]
    return {name: (folder / name).read_bytes() for name in files}


def test_the_files_are_those_of_a_local_folder_and_nothing_else_is_left(
    shards: Path, remote: RemotePath
) -> None:
    assert contents(remote) == contents(shards)
    assert read_manifest(str(remote)) == read_manifest(shards)


def test_an_error_amid_leaves_what_was_there(remote: RemotePath, rows: list[Example]) -> None:
    def breaking() -> object:
        yield rows[0]
        raise RuntimeError("amid")

    before = contents(remote)
    with pytest.raises(RuntimeError, match="amid"):
        write_shards(breaking(), remote, DataConfig(shards=remote))  # type: ignore[arg-type]
    assert contents(remote) == before


@pytest.mark.parametrize("moved", [0, 2, 3])
def test_shards_that_a_kill_left_half_moved_have_no_manifest_and_are_finished_by_the_next_run(
    bucket: RemotePath,
    shards: Path,
    rows: list[Example],
    monkeypatch: pytest.MonkeyPatch,
    moved: int,
) -> None:
    folder = bucket / f"half-{moved}"
    config = DataConfig(shards=folder, rows_per_shard=16)
    write_shards(rows[:20], folder, config)  # other shards are there

    def die(pairs: list[tuple[RemotePath, RemotePath]]) -> None:
        for old, new in pairs[:moved]:
            old.filesystem.copy_file(old.path, new.path)
        for old, _ in pairs[: max(0, moved - 1)]:
            old.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("stagebeam.data.work.move_files", die)
        write_shards(rows, folder, config)
    assert finished(folder, "any") is None
    with pytest.raises(ValueError, match=r"no prepared shards in s3://.*it has no manifest"):
        read_manifest(folder)

    (unfinished,) = (folder / ".partial").iterdir()
    work = Work(unfinished.name, (folder,))
    plan = work.plan()
    assert plan is not None
    work.finish(plan)
    assert contents(folder) == contents(shards)


@pytest.mark.parametrize("after", [False, True])
def test_a_break_at_any_change_of_the_store_shows_nothing_half_and_is_made_good(
    bucket: RemotePath,
    shards: Path,
    rows: list[Example],
    monkeypatch: pytest.MonkeyPatch,
    after: bool,
) -> None:
    wanted, step = contents(shards), 0
    while True:
        folder = bucket / f"break-{after}-{step}"
        config = DataConfig(shards=folder, rows_per_shard=16)
        with monkeypatch.context() as patch:
            left = breaking_at(patch, step, after)
            try:
                write_shards(rows, folder, config)
            except KeyboardInterrupt:
                assert left() == 0
            else:
                break
        if (folder / "manifest.json").exists():
            assert {k: v for k, v in contents(folder).items() if "/" not in k} == wanted
        write_shards(rows, folder, config)
        assert contents(folder) == wanted
        step += 1
    assert contents(folder) == wanted
    assert step > 10


def breaking_at(patch: pytest.MonkeyPatch, step: int, after: bool) -> Callable[[], int]:
    """Break off before or after this change of the store; gives how many are left until then."""
    left, lock = step + 1, threading.Lock()

    def counted(change: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: object, **named: object) -> None:
            nonlocal left
            with lock:  # files are moved by several threads
                left -= 1
                now = left == 0
            if now and not after:
                raise KeyboardInterrupt
            change(*arguments, **named)
            if now:
                raise KeyboardInterrupt

        return run

    for name in ("upload", "write_bytes", "unlink"):
        patch.setattr(RemotePath, name, counted(getattr(RemotePath, name)))
    patch.setattr(work_module, "remove_tree", counted(work_module.remove_tree))
    patch.setattr(storage, "_move_inside", counted(storage._move_inside))
    return lambda: max(left, 0)


def test_a_shard_that_is_missing_or_cut_is_told(remote: RemotePath, bucket: RemotePath) -> None:
    copy = bucket / "damaged"
    for name, data in contents(remote).items():
        (copy / name).write_bytes(data)
    shard = copy / "part-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"The shard s3://.*part-00001.parquet has \d+ bytes"):
        read_manifest(copy)
    shard.unlink()
    with pytest.raises(ValueError, match=r"The shard s3://.*part-00001.parquet .* is missing"):
        read_manifest(copy)


def test_rows_come_in_order_and_by_number(
    remote: RemotePath, shards: Path, rows: list[Example]
) -> None:
    assert list(iter_examples(remote)) == rows
    order = np.random.default_rng(0).permutation(len(rows))
    assert ShardReader(remote, "train", cache_bytes=1).rows(order) == [rows[n] for n in order]
    assert read_rows(remote, "train", {}).fingerprint == read_rows(shards, "train", {}).fingerprint


def test_the_stream_gives_each_rank_the_same_rows_in_the_same_order(
    remote: RemotePath, shards: Path, cluster: None
) -> None:
    # The cluster comes last: its processes take the bucket's environment from this one.
    plan = Plan(read_rows(shards, "train", {}), 8, 2, epochs=2, seed=3, window=2)
    here, there = streamed(shards, plan), streamed(remote, plan)
    assert there == here
    assert [place for *place, _ in there] == [
        [step, rank] for step in range(1, plan.total_steps) for rank in range(2)
    ]


def streamed(shards: Place, plan: Plan) -> list[tuple[int, int, list[str]]]:
    """Step, rank and rows of each parcel, from the second step on."""

    # in here, so that it is pickled whole: the encoders do not find the tests' modules
    def encode(examples: list[Example]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        return {"answers": np.array([int(e.answer or 0) for e in examples])}, {}

    dataset = training_dataset(shards, plan, 1, encode, 1)
    tables = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    parcels = [unpack(table) for table in tables]
    return [(p.step, p.rank, [i for m in p.micro_batches for i in m.row_ids]) for p in parcels]
