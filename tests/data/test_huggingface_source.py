"""Folders of data files, streamed by `datasets`."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from stagebeam.data.refusal import Refused
from stagebeam.data.sources import absolute, fingerprint, huggingface, read, read_span, spans
from stagebeam.records import Example, Image, Message
from stagebeam.source_config import Columns, HuggingFaceSource

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
QA = Columns(images="image", question="q", answer="a", choices="options")
TALK = Columns(images="image", conversations="turns")


@pytest.fixture(autouse=True)
def quiet() -> None:
    datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "vqa").mkdir()
    return tmp_path / "vqa"


def parquet(folder: Path, *rows: dict[str, Any], number: int = 0, **features: object) -> None:
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    data = datasets.Dataset.from_dict(columns)
    for column, feature in features.items():
        data = data.cast_column(column, feature)
    data.to_parquet(folder / f"train-{number:05d}.parquet")


def source(folder: Path, columns: Columns, **changes: Any) -> HuggingFaceSource:
    return HuggingFaceSource(path=str(folder), columns=columns, **changes)


def test_rows_with_options_become_examples_and_images_stay_as_they_came(
    folder: Path, make_png: Callable[..., bytes]
) -> None:
    image = {"bytes": make_png(), "path": "x.png"}
    row = {"image": image, "q": "Which?", "a": 1, "options": ["one", "two"], "other": "unused"}
    parquet(folder, row, image=datasets.Image())
    (example,) = read(source(folder, QA, split="val"))
    assert example == Example(
        id="vqa:train:0:0",
        images=(Image(make_png(), "x.png"),),
        messages=(Message("user", "Which?\nA. one\nB. two"), Message("assistant", "B")),
        source="huggingface/vqa",
        split="val",
        answer="B",
        choices=("one", "two"),
    )


@pytest.mark.parametrize(
    "turns",
    [
        TURNS,
        [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}],
        [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "That."}]},
        ],
        {"from": ["human", "gpt"], "value": ["What?", "That."]},
    ],
)
def test_the_usual_shapes_of_a_conversation_are_read(
    folder: Path, make_png: Callable[..., bytes], turns: object
) -> None:
    row = {"image": {"bytes": make_png(), "path": None}, "turns": turns}
    parquet(folder, row, image=datasets.Image())
    (example,) = read(source(folder, TALK))
    assert isinstance(example, Example), example
    assert example.messages == (Message("user", "What?"), Message("assistant", "That."))
    assert example.images == (Image(make_png()),)


def test_a_system_turn_ids_categories_and_lists_of_images_are_read(
    folder: Path, make_png: Callable[..., bytes]
) -> None:
    turns = [{"role": "system", "content": "Be brief."}]
    turns += [{"role": "user", "content": "Ä?"}, {"role": "assistant", "content": "B."}]
    images = [{"bytes": make_png(colour=n), "path": None} for n in range(2)]
    row = {"image": images, "turns": turns, "number": 7, "kind": "pairs", "gold": "b"}
    parquet(folder, row, image=datasets.List(datasets.Image()))
    columns = Columns(
        images="image", conversations="turns", id="number", category="kind", answer="gold"
    )
    (example,) = read(source(folder, columns))
    assert isinstance(example, Example)
    assert (example.id, example.category, example.answer) == ("7", "pairs", "b")
    assert [image.bytes for image in example.images] == [make_png(colour=n) for n in range(2)]
    assert [m.role for m in example.messages] == ["system", "user", "assistant"]


def test_null_images_and_choices_are_legal(folder: Path) -> None:
    parquet(folder, {"image": None, "q": "1 + 1?", "a": "2", "options": None})
    (example,) = read(source(folder, QA))
    assert isinstance(example, Example)
    assert (example.images, example.choices, example.answer) == ((), (), "2")


@pytest.mark.parametrize(
    ("answer", "options", "letter"),
    [
        (0, ["x", "y"], "A"),
        ("b", ["x", "y"], "B"),
        ("y", ["x", "y"], "B"),
        ("1", ["x", "y"], "B"),
        ("30", ["10", "20", "30"], "C"),
        ("1", ["0", "1"], "B"),
        ("B", ["B", "A"], "B"),
    ],
)
def test_the_answer_to_options_is_a_letter(
    folder: Path, answer: object, options: list[str], letter: str
) -> None:
    parquet(folder, {"image": None, "q": "?", "a": answer, "options": options})
    (example,) = read(source(folder, QA))
    assert isinstance(example, Example)
    assert example.answer == example.messages[-1].text == letter


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"a": 2}, "The answer '2' is none of the 2 choices"),
        ({"a": "-1"}, "none of the 2 choices"),
        ({"a": "1", "options": ["1", "2"]}, "one choice by its text, another by its number"),
        ({"a": None}, "has no 'answer'"),
        ({"a": True}, "neither text nor a number"),
        ({"q": None}, "'question' that is not text"),
        ({"q": "<image> or <image>?"}, "have 2 <image> and the row has 0 images"),
        ({"options": [str(n) for n in range(27)]}, "more than there are letters"),
        ({"options": "x"}, "not a list of texts"),
        ({"image": 5}, "neither bytes nor a path"),
    ],
)
def test_a_row_of_another_form_is_refused(
    folder: Path, changes: dict[str, Any], reason: str
) -> None:
    good = {"image": None, "q": "ö?", "a": "x", "options": ["x", "y"]}
    parquet(folder, good | changes)
    (refused,) = read(source(folder, QA))
    assert isinstance(refused, Refused)
    assert (refused.id, refused.fault) == ("vqa:train:0:0", "malformed row")
    assert reason in refused.reason and refused.reason.endswith(".")
    assert json.loads(refused.row)


def test_json_without_known_columns_is_read_as_well(folder: Path) -> None:
    (folder / "pictures").mkdir()
    (folder / "pictures/1.png").write_bytes(b"1")
    (folder.parent / "secret.png").write_bytes(b"secret")
    (folder / "pictures/out.png").symlink_to(folder.parent / "secret.png")
    paths = ["pictures/1.png", "../secret.png", "pictures/out.png", "/etc/hostname", "9.png"]
    paths += [
        "https://localhost/1.png",
        "zip://1.png::/etc/x.zip",
        "zip://x::hf://datasets/a/b@c/1.png",
    ]
    paths += [f"file:///etc/hostname::{folder}/train.jsonl", f"zip://1.png::{folder}/9.zip"]
    paths += ["zip://1.png::\0"]
    rows = ({"picture": path, "turns": TURNS} for path in paths)
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, *rest = read(source(folder, Columns(images="picture", conversations="turns")))
    assert isinstance(first, Example)
    assert first.images == (Image(b"1", "pictures/1.png"),)
    assert [r.fault for r in rest if isinstance(r, Refused)] == [
        *["unsafe path"] * 3,
        *["missing image"] * 2,
        *["unsafe path"] * 3,
        *["missing image"] * 2,
    ]


def test_an_image_folder_and_an_archive_of_one_are_read_in_place(
    folder: Path, make_png: Callable[..., bytes]
) -> None:
    lines = [{"file_name": f"{n}.png", "turns": TURNS} for n in "ab"]
    metadata = "\n".join(map(json.dumps, lines))
    with zipfile.ZipFile(folder / "train.zip", "w") as archive:
        archive.writestr("metadata.jsonl", metadata)
        for number, name in enumerate("ab"):
            archive.writestr(f"{name}.png", make_png(colour=number))
    zipped = list(read(source(folder, TALK)))
    (folder / "train.zip").unlink()
    (folder / "train").mkdir()
    (folder / "train/metadata.jsonl").write_text(metadata)
    for number, name in enumerate("ab"):
        (folder / f"train/{name}.png").write_bytes(make_png(colour=number))
    plain = list(read(source(folder, TALK)))
    assert [r.images[0].bytes for r in plain if isinstance(r, Example)] == [
        make_png(colour=0),
        make_png(colour=1),
    ]
    assert [r.images[0].path for r in plain if isinstance(r, Example)] == [
        "train/a.png",
        "train/b.png",
    ]
    assert [r.images[0].bytes for r in zipped if isinstance(r, Example)] == [
        make_png(colour=0),
        make_png(colour=1),
    ]


def shards(folder: Path) -> HuggingFaceSource:
    for number in range(3):
        rows = ({"q": f"{number}-{k}?", "a": "x"} for k in range(4))
        parquet(folder, *rows, number=number)
    return source(folder, Columns(question="q", answer="a"))


def asked(rows: Any) -> list[str]:
    return [r.messages[0].text if isinstance(r, Example) else "refused" for r in rows]


def test_stretches_are_files_and_together_the_source(folder: Path) -> None:
    several = shards(folder)
    cut = list(spans(several, 2))
    assert len(cut) == 3 and all(span.rows is None for span in cut)
    rows = list(read(several))
    assert asked(rows) == [f"{number}-{k}?" for number in range(3) for k in range(4)]
    assert len({r.id for r in rows}) == 12
    assert [r for span in cut for r in read_span(span)] == rows
    limited = several.model_copy(update={"limit": 6})
    assert list(read(limited)) == rows[:6]
    assert [r for span in spans(limited, 2) for r in read_span(span)] == rows[:6]


def test_a_damaged_file_costs_its_own_rows_alone(folder: Path) -> None:
    several = shards(folder)
    path = folder / "train-00001.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    rows = list(read(several))
    assert asked(rows) == [
        *(f"0-{k}?" for k in range(4)),
        "refused",
        *(f"2-{k}?" for k in range(4)),
    ]
    assert rows[4].id == "vqa:train:1:0"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rows_from": "test"}, "Cannot open the data set .*vqa: Bad split: test"),
        ({"name": "other"}, "BuilderConfig 'other' not found"),
        ({"columns": TALK}, r"has no column image, turns; it has q, a\.$"),
        ({"path": "empty"}, "doesn't contain any data files"),
    ],
)
def test_what_is_not_there_is_named(folder: Path, changes: dict[str, Any], reason: str) -> None:
    (folder.parent / "empty").mkdir()
    several = shards(folder)
    if "path" in changes:
        changes = {"path": str(folder.parent / changes["path"])}
    for use in (lambda s: list(read(s)), lambda s: list(spans(s, 2))):
        with pytest.raises(ValueError, match=reason) as caught:
            use(several.model_copy(update=changes))
        assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    absent = source(tmp_path / "nowhere", TALK)
    for use in (fingerprint, lambda s: list(spans(s, 2))):
        with pytest.raises(ValueError, match=r"no folder and no data set .*nowhere"):
            use(absent)


def test_the_fingerprint_follows_settings_and_files(folder: Path) -> None:
    several = shards(folder)
    first = fingerprint(several)
    assert fingerprint(several) == first
    assert fingerprint(several.model_copy(update={"limit": 1})) != first
    os.utime(folder / "train-00000.parquet", (1, 1))
    assert fingerprint(several) != first


def test_a_data_set_of_the_hub_is_known_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = HuggingFaceSource(path="someone/nothing-here", columns=TALK)
    monkeypatch.setattr(huggingface, "_commit", lambda source: "1" * 40)
    first = fingerprint(hub)
    monkeypatch.setattr(huggingface, "_commit", lambda source: "2" * 40)
    assert fingerprint(hub) != first
    assert absolute(hub) == hub


def test_a_relative_folder_becomes_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several = shards(folder)
    monkeypatch.chdir(folder.parent)
    made = absolute(several.model_copy(update={"path": "vqa"}))
    assert made == several
