from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stagebeam.data.refusal import Refused
from stagebeam.data.sources import fingerprint, image_store, llava_cot, read, read_span, spans
from stagebeam.data.sources import row as row_module
from stagebeam.records import Example, Image, Message
from stagebeam.source_config import LlavaCotSource

HUMAN = {"from": "human", "value": "How many?"}
GPT = {"from": "gpt", "value": "Four."}


def row(name: str, image: object = "sqa/1.png", **changes: object) -> dict[str, Any]:
    return {"id": name, "image": image, "conversations": [HUMAN, GPT], **changes}


@pytest.fixture
def folder(tmp_path: Path, make_png: Callable[..., bytes]) -> Path:
    (tmp_path / "secret.png").write_bytes(make_png())
    root = tmp_path / "images"
    for name in ("sqa/1.png", "geoqa+/deep/2.png", "loose.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(make_png())
    (root / "sqa/out.png").symlink_to(tmp_path / "secret.png")
    (root / "sqa/loop.png").symlink_to(root / "sqa/loop.png")
    return tmp_path


def write(folder: Path, *lines: object) -> LlavaCotSource:
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / "train.jsonl").write_bytes(b"\n".join(raw) + b"\n")
    return LlavaCotSource(annotations=folder / "train.jsonl", image_root=folder / "images")


def test_rows_become_examples(folder: Path, make_png: Callable[..., bytes]) -> None:
    source = write(folder, row("a"), row("b", "geoqa+/deep/2.png"), row("c", "loose.png"))
    examples = list(read(source.model_copy(update={"split": "val"})))
    assert examples[0] == Example(
        id="a",
        images=(Image(make_png(), "sqa/1.png"),),
        messages=(Message("user", "How many?"), Message("assistant", "Four.")),
        source="llava_cot/sqa",
        split="val",
    )
    assert [e.source for e in examples if isinstance(e, Example)] == [
        "llava_cot/sqa",
        "llava_cot/geoqa+",
        "llava_cot",
    ]


def test_several_turns_and_no_image_are_legal(folder: Path) -> None:
    text = {"id": "a", "conversations": [HUMAN, GPT, HUMAN, GPT]}
    plain, null = read(write(folder, text, row("b", None)))
    assert isinstance(plain, Example) and isinstance(null, Example)
    assert plain.images == null.images == ()
    assert plain.source == "llava_cot/text"
    assert [m.role for m in plain.messages] == ["user", "assistant"] * 2


@pytest.mark.parametrize(
    ("line", "name", "reason"),
    [
        (b'{"id": "a", "ima', "train.jsonl:1", "not valid JSON"),
        (b"\xff\xfe", "train.jsonl:1", "not valid JSON"),
        (b"[" * 100_000, "train.jsonl:1", "not valid JSON"),
        (b'["a"]', "train.jsonl:1", "not a JSON object"),
        ({"conversations": [HUMAN, GPT]}, "train.jsonl:1", "The row has no 'id'"),
        (row("a") | {"id": 7}, "train.jsonl:1", "'id' that is not text"),
        ({"id": "a"}, "a", "no list of 'conversations'"),
        (row("a", conversations={"from": "human"}), "a", "no list of 'conversations'"),
        (row("a", conversations=["hello"]), "a", "Turn 1 is not a JSON object"),
        (row("a", conversations=[HUMAN, {"from": "gpt"}]), "a", "Turn 2 has no 'value'"),
        (row("a", conversations=[{"value": "x"}]), "a", "Turn 1 has no 'from'"),
        (row("a", conversations=[{**HUMAN, "value": 3}]), "a", "Turn 1 has a 'value' that is not"),
        (row("a", conversations=[{**HUMAN, "from": "bard"}]), "a", "from 'bard', not a human"),
        (row("a", 5), "a", "'image' that is not text"),
        (row("a", ["sqa/1.png", None]), "a", "'image' that is not text"),
        (row("a", ["sqa/1.png", "../secret.png"]), "a", "leads out of the image folder"),
        (row("a", "sqa/9.png") | {"id": "\ud800"}, "?", "There is no image file"),
        (row("a", "sqa/9.png"), "a", "There is no image file sqa/9.png"),
        (row("a", "sqa"), "a", "There is no image file sqa"),
        (row("a", ""), "a", "There is no image file"),
        (row("a", "sqa/1.png/x"), "a", "There is no image file"),
        (row("a", "../secret.png"), "a", "leads out of the image folder"),
        (row("a", "sqa/../../secret.png"), "a", "leads out of the image folder"),
        (row("a", "/etc/hostname"), "a", "leads out of the image folder"),
        (row("a", "sqa/out.png"), "a", "leads out of the image folder"),
        (row("a", "sqa/loop.png"), "a", "image"),
        (row("a", "sqa/\0.png"), "a", "cannot be read"),
        (row("a", "sqa/" + "x" * 5000), "a", "cannot be read"),
    ],
)
def test_a_row_of_another_form_is_refused_and_the_next_one_read(
    folder: Path, line: object, name: str, reason: str
) -> None:
    refused, good = read(write(folder, line, row("good")))
    assert isinstance(refused, Refused)
    assert refused.id == name
    assert reason in refused.reason
    assert refused.reason.endswith(".") and "\n" not in refused.reason
    assert isinstance(good, Example) and good.id == "good"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"{", "malformed row"),
        (row("a", "sqa/9.png"), "missing image"),
        (row("a", "../secret.png"), "unsafe path"),
    ],
)
def test_a_refusal_says_its_kind_and_keeps_the_line(folder: Path, line: object, fault: str) -> None:
    (refused,) = read(write(folder, line))
    assert isinstance(refused, Refused) and refused.fault == fault
    assert refused.row.rstrip() == (line.decode() if isinstance(line, bytes) else json.dumps(line))


def test_several_images_are_legal_and_the_first_names_the_source(folder: Path) -> None:
    (example,) = read(write(folder, row("a", ["sqa/1.png", "loose.png"])))
    assert isinstance(example, Example)
    assert [image.path for image in example.images] == ["sqa/1.png", "loose.png"]
    assert example.source == "llava_cot/sqa"


def test_a_last_line_that_is_cut_short_is_refused_under_its_place(folder: Path) -> None:
    source = write(folder, row("a"), row("b"))
    source.annotations.write_bytes(source.annotations.read_bytes()[:-9])
    assert [r.id for r in read(source)] == ["a", "train.jsonl:2"]


def test_a_line_that_is_too_long_is_refused_without_being_held(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llava_cot, "MAX_ROW_BYTES", 400)
    monkeypatch.setattr(row_module, "MAX_ROW_BYTES", 400)
    source = write(folder, row("a"), row("b" * 5000), row("c"))
    expected = ["a", "train.jsonl:2", "c"]
    assert [r.id for r in read(source)] == expected
    assert [r.id for span in spans(source, 1) for r in read_span(span)] == expected


def test_an_image_that_is_too_large_is_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_store, "MAX_IMAGE_BYTES", 20)
    (refused,) = read(write(folder, row("a")))
    assert isinstance(refused, Refused) and refused.fault == "large image"


def test_blank_lines_are_skipped_and_lines_numbered_as_in_the_file(folder: Path) -> None:
    rows = list(read(write(folder, b"", row("a"), b"  ", b"{", b"")))
    assert [r.id for r in rows] == ["a", "train.jsonl:4"]


def test_a_file_without_a_last_newline_is_read_whole(folder: Path) -> None:
    source = write(folder, row("a"), row("b"))
    source.annotations.write_bytes(source.annotations.read_bytes().rstrip())
    assert [r.id for r in read(source)] == ["a", "b"]


def test_limit_ends_the_reading(folder: Path) -> None:
    source = write(folder, *(row(f"{n}") for n in range(5)))
    limited = source.model_copy(update={"limit": 3})
    assert [r.id for r in read(limited)] == ["0", "1", "2"]
    assert [r.id for span in spans(limited, 2) for r in read_span(span)] == ["0", "1", "2"]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_stretches_together_are_the_source(folder: Path, size: int) -> None:
    source = write(folder, row("ä"), b"", b"{", row("b", "sqa/9.png"), row("c"), b"[]")
    cut = list(spans(source, size))
    assert sum(span.rows or 0 for span in cut) == 6
    assert [r for span in cut for r in read_span(span)] == list(read(source))


def test_reading_starts_before_the_file_ends(folder: Path) -> None:
    source = write(folder, row("a"))
    with source.annotations.open("ab") as file:
        file.truncate(1 << 40)  # sparse: a reader of the whole file would not return
    rows = read(source)
    assert next(rows).id == "a"


@pytest.mark.parametrize("use", [lambda s: list(read(s)), lambda s: list(spans(s, 2)), fingerprint])
def test_a_source_that_is_not_there_is_named(
    folder: Path, use: Callable[[LlavaCotSource], object]
) -> None:
    source = write(folder, row("a"))
    absent = source.model_copy(update={"annotations": folder / "absent.jsonl"})
    with pytest.raises(ValueError, match=r"absent\.jsonl: No such file"):
        use(absent)
    with pytest.raises(ValueError, match=r"no image folder .*nowhere"):
        use(source.model_copy(update={"image_root": folder / "nowhere"}))


def test_the_fingerprint_follows_settings_and_content(folder: Path) -> None:
    source = write(folder, row("a"))
    first = fingerprint(source)
    assert fingerprint(source) == first
    assert fingerprint(source.model_copy(update={"limit": 1})) != first
    write(folder, row("b"))
    assert fingerprint(source) != first
