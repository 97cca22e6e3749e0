"""Rows to shards without Ray: what is written, what is refused, and breaks at every step."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from stagebeam.data.content import assigned, digest
from stagebeam.data.layout import Layout
from stagebeam.data.manifest import Manifest, Refusal, read_manifest
from stagebeam.data.parts import Mark, Writer
from stagebeam.data.refusal import Refused
from stagebeam.data.settle import Stretch, edit
from stagebeam.data.shards import ShardReader, iter_examples
from stagebeam.data.work import Work
from stagebeam.data.writing import conclude, finished, origin, work_for, write_shards
from stagebeam.recipe import DataConfig
from stagebeam.records import Example, Message
from stagebeam.source_config import HeldOut, ScenesSource

Make = Callable[..., Example]
Rows = Sequence[Example | Refused]
BAD = Refused("bad", "missing image", "It was so.", '{"id": "bad"}')


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    return DataConfig(shards=tmp_path / "shards", rows_per_shard=4)


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _hashes(*folders: Path) -> dict[str, str]:
    return {
        f"{folder.name}/{path.relative_to(folder)}": hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_manifest_adds_up(make_example: Make, config: DataConfig) -> None:
    rows: list[Example | Refused] = [make_example(n) for n in range(5)]
    rows.insert(2, BAD)
    manifest = write_shards(rows, config.shards, config)
    assert manifest == read_manifest(config.shards)
    assert manifest.rows == 5 == sum(s.rows for s in manifest.shards)
    assert manifest.read == len(rows)
    assert manifest.sources == {"small/even": 3, "small/odd": 2}
    assert manifest.faults == {"missing image": 1}
    assert manifest.refused == (Refusal(id="bad", fault="missing image", reason="It was so."),)
    for shard in manifest.shards:
        data = (config.shards / shard.file).read_bytes()
        assert shard.bytes == len(data)
        assert shard.sha256 == hashlib.sha256(data).hexdigest()
    assert _files(config.shards) == {
        "manifest.json",
        "part-00000.parquet",
        "part-00001.parquet",
        "refused.jsonl",
    }


def test_refused_rows_are_kept_aside(make_example: Make, config: DataConfig) -> None:
    odd = Refused("half \ud800", "text", "Ünicode: \ud800.", "{")
    write_shards([make_example(), BAD, odd], config.shards, config)
    lines = (config.shards / "refused.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "id": "bad",
            "fault": "missing image",
            "reason": "It was so.",
            "row": '{"id": "bad"}',
            "kind": "",
            "place": "",
        },
        {
            "id": "half \\ud800",
            "fault": "text",
            "reason": "Ünicode: \\ud800.",
            "row": "{",
            "kind": "",
            "place": "",
        },
    ]


def test_rows_written_by_hand_may_repeat(make_example: Make, config: DataConfig) -> None:
    manifest = write_shards([make_example(0), make_example(0)], config.shards, config)
    assert (manifest.rows, manifest.read) == (2, 2)
    assert len({e.id for e in iter_examples(config.shards)}) == 2


def test_the_same_rows_make_the_same_files(make_example: Make, config: DataConfig) -> None:
    rows = [make_example(n) for n in range(6)]
    first = write_shards(rows, config.shards, config)
    assert write_shards(rows, config.shards.with_name("again"), config) == first


@pytest.mark.parametrize(
    "change",
    [
        {"sources": (ScenesSource(rows=3, seed=1),)},
        {"rows_per_shard": 5},
        {"require_stages": False},
        {"max_image_pixels": 7},
        {"held_out": HeldOut(share=0.5)},
    ],
)
def test_shards_of_other_settings_are_told_apart(
    make_example: Make, config: DataConfig, change: dict[str, object]
) -> None:
    layout = Layout((config.shards,))
    write_shards([make_example()], config.shards, config)
    assert finished(config.shards, origin(config, layout)) == read_manifest(config.shards)
    with pytest.raises(ValueError, match=r"other sources or settings.*--fresh"):
        finished(config.shards, origin(config.model_copy(update=change), layout))
    assert finished(config.shards / "none", "") is None


def test_new_shards_replace_the_old_ones(make_example: Make, config: DataConfig) -> None:
    write_shards([*(make_example(n) for n in range(9)), BAD], config.shards, config)
    write_shards([make_example(20)], config.shards, config)
    assert [e.id for e in iter_examples(config.shards)] == ["row-020"]
    assert _files(config.shards) == {"manifest.json", "part-00000.parquet"}


def _breaking(make_example: Make, error: BaseException) -> Iterator[Example]:
    yield from (make_example(n) for n in range(6))
    raise error


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_a_break_before_anything_is_whole_leaves_nothing(
    make_example: Make, config: DataConfig, tmp_path: Path, error: BaseException
) -> None:
    deep = tmp_path / "new" / "deep"
    with pytest.raises(type(error)):
        write_shards(_breaking(make_example, error), deep, config)
    assert _files(tmp_path) == set()


def test_a_break_leaves_the_old_shards(make_example: Make, config: DataConfig) -> None:
    old = write_shards([make_example(n) for n in range(3)], config.shards, config)
    with pytest.raises(RuntimeError):
        write_shards(_breaking(make_example, RuntimeError()), config.shards, config)
    assert read_manifest(config.shards) == old
    assert _files(config.shards) == {"manifest.json", "part-00000.parquet"}


def test_what_another_run_left_is_cleared(make_example: Make, config: DataConfig) -> None:
    (config.shards / ".partial" / "1234").mkdir(parents=True)
    for left in (".partial/1234/mark-00000.parquet", "part-00000.parquet", "part-00007.parquet"):
        (config.shards / left).write_bytes(b"half")
    write_shards([make_example()], config.shards, config)
    assert _files(config.shards) == {"manifest.json", "part-00000.parquet"}
    assert [e.id for e in iter_examples(config.shards)] == ["row-000"]


def test_no_usable_row_is_an_error_that_says_why(config: DataConfig) -> None:
    with pytest.raises(ValueError, match=r"none of 2 rows is usable.*It was so\."):
        write_shards([BAD, BAD], config.shards, config)
    assert not config.shards.exists()


class Run:
    """`prepare` in this process: the stretches of a training and of a test source."""

    def __init__(
        self,
        folder: Path,
        stretches: Sequence[tuple[str, Rows]],
        deduplicate: bool = True,
        **data: Any,
    ) -> None:
        self.folders = (folder / "train", folder / "test")
        self.layout = Layout(self.folders, train=0, others=1)
        self.config = DataConfig(shards=self.folders[0], rows_per_shard=4, **data)
        self.stretches, self.deduplicate = stretches, deduplicate
        self.made: list[int] = []

    def __call__(self) -> list[Manifest]:
        work = work_for(self.config, self.layout)
        if (plan := work.plan()) is not None:
            return work.finish(plan)
        with work.opened():
            done = work.done(len(self.stretches))
            for number in range(len(self.stretches)):
                if number not in done:
                    work.write_mark(number, self._mark(work, number))
            about = Stretch("made", "here", self.deduplicate)
            marks = [(about, work.read_mark(n)) for n in range(len(self.stretches))]
            plan = conclude(
                work, marks, lambda todo: [(part, edit(at, part, e)) for at, part, e in todo]
            )
        return work.finish(plan)

    def _mark(self, work: Work, number: int) -> Mark:
        self.made.append(number)
        split, rows = self.stretches[number]
        with Writer(number, split, self.config, self.layout, work.places) as writer:
            for row in rows:
                writer.add(row)
            return writer.close()

    def ids(self) -> tuple[list[str], list[str]]:
        train, test = ([e.id for e in iter_examples(f)] for f in self.folders)
        return train, test


@pytest.fixture
def stretches(make_example: Make) -> list[tuple[str, Rows]]:
    """Duplicates inside a stretch, over stretches and over folders, an id with other content, a
    part of which nothing stays, and refusals."""
    row = make_example
    return [
        ("train", [row(0), BAD, row(1), row(0), row(2), row(3), row(4), row(5), row(1)]),
        ("train", [row(0), row(1), row(2), row(3)]),
        ("train", [row(6), row(0, answer="other"), row(0, answer="another")]),
        ("test", [row(7, split="test"), row(2, split="test"), BAD, row(8, split="test")]),
    ]


def test_of_the_same_content_the_first_row_stays_over_all_folders(
    tmp_path: Path, stretches: list[tuple[str, Rows]], make_example: Make
) -> None:
    run = Run(tmp_path, stretches)
    train, test = run()
    other = digest(make_example(0, answer="other")).hex()[:8]
    another = digest(make_example(0, answer="another")).hex()[:8]
    assert run.ids() == (
        [*(f"row-00{n}" for n in range(7)), f"row-000~{other}", f"row-000~{another}"],
        ["row-007", "row-008"],
    )
    kept = ShardReader(run.folders[0]).rows(range(7))
    assert kept == [make_example(n) for n in range(7)]
    assert (train.read, train.rows, train.faults) == (16, 9, {"duplicate": 6, "missing image": 1})
    assert (test.read, test.rows, test.faults) == (4, 2, {"duplicate": 1, "missing image": 1})
    assert [s.rows for s in train.shards] == [3, 3, 3]
    assert test.refused[0].reason == "The same content as row row-002."


def test_a_source_that_may_repeat_keeps_its_rows_under_names_of_their_own(
    tmp_path: Path, make_example: Make
) -> None:
    rows = [("train", [make_example(0)] * 4), ("test", [make_example(0, split="test")])]
    run = Run(tmp_path, rows, deduplicate=False)
    run()
    name = f"row-000~{digest(make_example(0)).hex()[:8]}"
    assert run.ids() == (["row-000", name, f"{name}~2", f"{name}~3"], [f"{name}~4"])


def test_content_is_what_training_sees_and_not_what_the_row_is_called(make_example: Make) -> None:
    row = make_example(0)
    same = make_example(0, id="x", source="y", split="test", category="z")
    assert digest(row) == digest(same)
    turn = (Message("user", "Other?"), row.messages[1])
    two = row.images * 2
    for change in ({"messages": turn}, {"answer": None}, {"choices": ()}, {"images": two}):
        assert digest(make_example(0, **change)) != digest(row)


class Kill(BaseException):
    """Stands for what cannot be caught."""


def _break_at(monkeypatch: pytest.MonkeyPatch, step: int, after: bool) -> Callable[[], int]:
    """Every change of a name on disk counts as a step; step `step` is the last."""
    count = 0

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def change(*args: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count > step or (count == step and not after):
                raise Kill
            result = real(*args, **options)
            if count == step:
                raise Kill
            return result

        return change

    monkeypatch.setattr(os, "replace", counted(os.replace))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink))
    monkeypatch.setattr(Path, "mkdir", counted(Path.mkdir))
    monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree))
    return lambda: count


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_a_break_at_any_step_is_continued_to_the_same_files(
    tmp_path: Path,
    stretches: list[tuple[str, Rows]],
    make_example: Make,
    monkeypatch: pytest.MonkeyPatch,
    old: bool,
    after: bool,
) -> None:
    whole = Run(tmp_path / "whole", stretches)
    manifests = whole()
    expected = _hashes(*whole.folders)
    before = [("train", [make_example(n) for n in range(30, 45)])]
    before.append(("test", [make_example(n, split="test") for n in range(50, 70)]))
    for step in range(1, 1000):
        run = Run(tmp_path / str(step), stretches)
        if old:
            Run(tmp_path / str(step), before, max_image_pixels=7)()
        with monkeypatch.context() as patch:
            steps = _break_at(patch, step, after)
            try:
                run()
            except Kill:
                pass
            else:
                assert steps() < step
                break
        there = [read_manifest(f) for f in run.folders if (f / "manifest.json").exists()]
        marks = (run.folders[0] / ".partial").glob("*/mark-*.parquet")
        done = {int(mark.name[5:10]) for mark in marks}
        run.made.clear()
        assert run() == manifests
        assert _hashes(*run.folders) == expected
        if there != manifests:  # else only the clearing away was left
            assert not done & set(run.made)
    assert step > 25


def test_a_stretch_whose_files_were_damaged_is_done_again(
    tmp_path: Path, stretches: list[tuple[str, Rows]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Run(tmp_path / "whole", stretches)
    whole()
    run = Run(tmp_path / "again", stretches)
    with monkeypatch.context() as patch, pytest.raises(Kill):
        patch.setattr(Work, "save_plan", _kill)
        run()
    place = next((run.folders[0] / ".partial").iterdir())
    (place / "rows-00000-000.parquet").write_bytes(b"")
    (place / "mark-00002.parquet").write_bytes(b"")
    run.made.clear()
    run()
    assert run.made == [0, 2]
    assert _hashes(*run.folders) == _hashes(*whole.folders)


def _kill(*_: object) -> None:
    raise Kill


def test_a_plan_whose_files_are_gone_is_not_followed(
    tmp_path: Path, stretches: list[tuple[str, Rows]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, stretches)
    with monkeypatch.context() as patch, pytest.raises(Kill):
        patch.setattr(Work, "finish", _kill)
        run()
    place = next((run.folders[0] / ".partial").iterdir())
    next(place.glob("rows-00002*")).unlink()
    next(place.glob("edited-rows-00002*")).unlink()
    run.made.clear()
    run()
    assert run.made == [2]


HELD_OUT = HeldOut(share=0.1, split="test")


def test_the_split_depends_on_the_row_alone(make_example: Make, tmp_path: Path) -> None:
    rows = [make_example(n, images=(), answer=str(n)) for n in range(200)]
    held = {e.answer for e in rows if assigned(e, HELD_OUT).split == "test"}
    more = [make_example(n, images=(), answer=str(n)) for n in range(200, 400)]
    mixed = rows + more
    random.Random(0).shuffle(mixed)
    run = Run(tmp_path, [("train", mixed[:150]), ("train", mixed[150:])], held_out=HELD_OUT)
    train, test = run()
    assert train.splits == {"train": train.rows} and test.splits == {"test": test.rows}
    kept_back = {e.answer for e in iter_examples(run.folders[1]) if int(e.answer or "") < 200}
    assert kept_back == held
    assert train.read + test.read == 400


def test_the_share_is_kept_and_rows_of_one_image_stay_together(make_example: Make) -> None:
    rows = [
        make_example(0, images=(), messages=(Message("user", str(n)),), answer=str(n % 3))
        for n in range(4000)
    ]
    held = sum(assigned(row, HELD_OUT).split == "test" for row in rows)
    assert abs(held - 400) < 5 * 19  # standard deviations of a binomial
    sides = {
        image: {
            assigned(make_example(image, answer=str(k), id=str(k)), HELD_OUT).split
            for k in range(5)
        }
        for image in range(60)
    }
    assert all(len(side) == 1 for side in sides.values())
    assert {"train"} in sides.values() and {"test"} in sides.values()
    mine = make_example(0, split="val")
    assert assigned(mine, HeldOut(share=0.999)) == mine
    assert assigned(make_example(0), None).split == "train"
