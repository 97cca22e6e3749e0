from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest

from stagebeam.data import shards as shards_module
from stagebeam.data.shards import ShardReader, iter_examples, read_manifest, survey, write_shards
from stagebeam.data.validate import Refused
from stagebeam.recipe import DataConfig, ScenesSource
from stagebeam.records import Example

Make = Callable[..., Example]


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    return DataConfig(shards=tmp_path / "shards", rows_per_shard=4, sources=(_source(0),))


def _source(seed: int) -> ScenesSource:
    return ScenesSource(rows=3, seed=seed)


def _never() -> Iterator[Example]:
    raise AssertionError("the rows were read")
    yield


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
    monkeypatch.setattr(shards_module, "_GROUP_ROWS", 3)
    monkeypatch.setattr(shards_module, "_CACHE_BYTES", 1)
    wide = config.model_copy(update={"rows_per_shard": 10})
    examples = [make_example(n) for n in range(27)]
    write_shards(examples, config.shards, wide)
    reader = ShardReader(config.shards)
    order = [26, 0, 9, 10, 2, 3, 19, 26]
    assert reader.rows(order) == [examples[i] for i in order]
    assert len(reader._cache) == 1


def test_large_images_make_small_row_groups(
    make_example: Make, config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "_GROUP_BYTES", 1)
    write_shards([make_example(n) for n in range(4)], config.shards, config)
    assert len(ShardReader(config.shards)._groups) == 4


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


def test_the_manifest_adds_up(make_example: Make, config: DataConfig) -> None:
    rows: list[Example | Refused] = [make_example(n) for n in range(5)]
    rows.insert(2, Refused("bad", "It was so."))
    rows.append(make_example(1))
    seen: list[int] = []
    manifest = write_shards(rows, config.shards, config, on_progress=seen.append)
    assert manifest == read_manifest(config.shards)
    assert manifest.rows == 5 == sum(s.rows for s in manifest.shards)
    assert manifest.sources == {"small/even": 3, "small/odd": 2}
    assert [(r.id, r.reason) for r in manifest.refused] == [
        ("bad", "It was so."),
        ("row-001", "An earlier row has the same id."),
    ]
    assert manifest.rows + len(manifest.refused) == len(rows) == seen[-1]
    for shard in manifest.shards:
        data = (config.shards / shard.file).read_bytes()
        assert shard.bytes == len(data)
        assert shard.sha256 == hashlib.sha256(data).hexdigest()
    assert survey(rows, config) == manifest.model_copy(update={"shards": ()})


def test_the_same_rows_make_the_same_files(make_example: Make, config: DataConfig) -> None:
    rows = [make_example(n) for n in range(6)]
    first = write_shards(rows, config.shards, config)
    assert write_shards(rows, config.shards.with_name("again"), config) == first


def test_finished_shards_are_left_alone(make_example: Make, config: DataConfig) -> None:
    manifest = write_shards([make_example()], config.shards, config)
    before = (config.shards / "part-00000.parquet").stat().st_mtime_ns
    assert write_shards(_never(), config.shards, config) == manifest
    assert (config.shards / "part-00000.parquet").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "change",
    [
        {"sources": (_source(1),)},
        {"rows_per_shard": 5},
        {"require_stages": False},
        {"max_image_pixels": 7},
    ],
)
def test_shards_of_other_settings_are_replaced_only_when_told_so(
    make_example: Make, config: DataConfig, change: dict[str, object]
) -> None:
    write_shards([make_example(n) for n in range(9)], config.shards, config)
    other = config.model_copy(update=change)
    with pytest.raises(ValueError, match=r"other sources or settings.*--fresh"):
        write_shards(_never(), config.shards, other)
    write_shards([make_example(20)], config.shards, other, fresh=True)
    assert [e.id for e in iter_examples(config.shards)] == ["row-020"]
    assert _files(config.shards) == {"manifest.json", "part-00000.parquet"}


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _breaking(make_example: Make, error: BaseException) -> Iterator[Example]:
    yield from (make_example(n) for n in range(6))
    raise error


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_a_break_in_the_middle_leaves_nothing(
    make_example: Make, config: DataConfig, tmp_path: Path, error: BaseException
) -> None:
    deep = tmp_path / "new" / "deep"
    with pytest.raises(type(error)):
        write_shards(_breaking(make_example, error), deep, config)
    assert _files(tmp_path) == set()


def test_a_break_in_a_fresh_run_leaves_the_old_shards(
    make_example: Make, config: DataConfig
) -> None:
    old = write_shards([make_example(n) for n in range(3)], config.shards, config)
    with pytest.raises(RuntimeError):
        write_shards(_breaking(make_example, RuntimeError()), config.shards, config, fresh=True)
    assert read_manifest(config.shards) == old
    assert _files(config.shards) == {"manifest.json", "part-00000.parquet"}
    assert len(list(iter_examples(config.shards))) == 3


def test_what_a_killed_run_left_is_cleared(make_example: Make, config: DataConfig) -> None:
    (config.shards / ".partial").mkdir(parents=True)
    for left in (".partial/part-00000.parquet", "part-00000.parquet", "part-00007.parquet"):
        (config.shards / left).write_bytes(b"half")
    write_shards([make_example()], config.shards, config)
    assert _files(config.shards) == {"manifest.json", "part-00000.parquet"}
    assert [e.id for e in iter_examples(config.shards)] == ["row-000"]


def test_no_usable_row_is_an_error_that_says_why(config: DataConfig) -> None:
    rows = [Refused("a", "It was so."), Refused("b", "It was else.")]
    with pytest.raises(ValueError, match=r"none of 2 rows is usable.*It was so\."):
        write_shards(rows, config.shards, config)
    assert not config.shards.exists()


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
