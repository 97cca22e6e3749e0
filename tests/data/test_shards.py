from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from stagebeam.data import parts as parts_module
from stagebeam.data.manifest import read_manifest
from stagebeam.data.refusal import Refused
from stagebeam.data.shards import ShardReader, iter_examples
from stagebeam.data.writing import write_shards
from stagebeam.recipe import DataConfig
from stagebeam.records import Example

Make = Callable[..., Example]


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    return DataConfig(shards=tmp_path / "shards", rows_per_shard=4)


def test_examples_come_back_as_they_went_in(make_example: Make, config: DataConfig) -> None:
    odd = make_example(
        9, images=(), answer=None, category=None, choices=(), split="test", source="s"
    )
    two = make_example(10, images=make_example(1).images + make_example(2).images)
    examples = [*(make_example(n) for n in range(9)), odd, two]
    manifest = write_shards(examples, config.shards, config)
    assert [s.rows for s in manifest.shards] == [4, 4, 3]
    assert list(iter_examples(config.shards)) == examples
    reader = ShardReader(config.shards)
    assert len(reader) == 11
    assert reader.rows([10, 0, 4, 4]) == [examples[i] for i in (10, 0, 4, 4)]
    with pytest.raises(IndexError):
        reader.row(11)


def test_rows_are_found_over_many_row_groups_with_a_small_cache(
    make_example: Make, config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "_GROUP_ROWS", 3)
    wide = config.model_copy(update={"rows_per_shard": 10})
    examples = [make_example(n) for n in range(27)]
    write_shards(examples, config.shards, wide)
    reader = ShardReader(config.shards, cache_bytes=1)
    order = [26, 0, 9, 10, 2, 3, 19, 26]
    assert reader.rows(order) == [examples[i] for i in order]
    assert len(reader.row_groups.kept) == 1


def test_large_images_make_small_row_groups(
    make_example: Make, config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "_GROUP_BYTES", 1)
    write_shards([make_example(n) for n in range(4)], config.shards, config)
    assert len(ShardReader(config.shards).row_groups.groups) == 4


def test_a_reader_of_one_split_numbers_its_rows(make_example: Make, config: DataConfig) -> None:
    examples = [make_example(n, split="test" if n % 3 == 0 else "train") for n in range(9)]
    manifest = write_shards(examples, config.shards, config)
    assert manifest.splits == {"test": 3, "train": 6}
    reader = ShardReader(config.shards, split="test")
    assert reader.rows(range(len(reader))) == [examples[i] for i in (0, 3, 6)]


def test_datasets_opens_the_shards(make_example: Make, config: DataConfig, tmp_path: Path) -> None:
    examples = [make_example(n) for n in range(6)]
    write_shards(examples, config.shards, config)
    loaded = datasets.load_dataset(
        "parquet",
        data_files=str(config.shards / "*.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert [row["id"] for row in loaded] == [e.id for e in examples]
    assert loaded[3]["images"] == [{"bytes": examples[3].images[0].bytes, "path": "3.png"}]
    assert loaded[3]["conversations"][0] == {"role": "user", "text": "Question 3?"}
    assert loaded[3]["choices"] == ["1", "2"]


def test_a_folder_without_a_manifest_is_not_a_set_of_shards(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match=r"no prepared shards in .*manifest\.json"):
            read_manifest(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").write_text("{"), "is damaged"),
        (lambda folder: _set(folder, "schema_version", 2), "schema_version"),
        (lambda folder: _set(folder, "rows", None), "rows"),
        (lambda folder: _set(folder, "read", 3), "1 rows and 0 refused are not the 3 read"),
        (lambda folder: _set(folder, "faults", {"turns": 1}), "do not add up"),
        (lambda folder: (folder / "part-00000.parquet").unlink(), r"part-00000.* is missing"),
        (lambda folder: (folder / "part-00000.parquet").write_bytes(b"x"), "has 1 bytes"),
    ],
)
def test_damage_is_named(
    make_example: Make, config: DataConfig, damage: Callable[[Path], object], message: str
) -> None:
    write_shards([make_example()], config.shards, config)
    damage(config.shards)
    for use in (read_manifest, ShardReader, lambda folder: list(iter_examples(folder))):
        with pytest.raises(ValueError, match=message):
            use(config.shards)


def _set(folder: Path, key: str, value: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


def test_a_manifest_from_before_the_counts_by_fault_is_read(
    make_example: Make, config: DataConfig
) -> None:
    bad = Refused("bad", "turns", "It was so.")
    written = write_shards([make_example(), bad], config.shards, config)
    path = config.shards / "manifest.json"
    earlier = json.loads(path.read_text())
    del earlier["read"], earlier["faults"], earlier["refused"][0]["fault"]
    path.write_text(json.dumps(earlier))
    manifest = read_manifest(config.shards)
    assert (manifest.read, manifest.rows) == (written.read, written.rows) == (2, 1)
    assert manifest.faults == {"malformed row": 1}
