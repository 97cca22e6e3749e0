"""Tar files of rows, read as streams."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from stagebeam.data.refusal import Refused
from stagebeam.data.sources import absolute, fingerprint, image_store, read, read_span, spans
from stagebeam.records import Example, Image, Message
from stagebeam.source_config import WebDatasetSource

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]


def row(**changes: object) -> bytes:
    return json.dumps({"conversations": TURNS, **changes}).encode()


def write(path: Path, members: Mapping[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def source(tmp_path: Path) -> WebDatasetSource:
    return WebDatasetSource(shards=str(tmp_path / "*.tar*"))


def test_members_of_one_key_are_a_row(
    tmp_path: Path, source: WebDatasetSource, make_png: Callable[..., bytes]
) -> None:
    write(
        tmp_path / "train-0.tar",
        {"./": b"", "./a/0001.jpg": make_png(), "./a/0001.json": row(), "./a/0002.json": row(id=7)}
        | {"./a/0002.PNG": make_png(), "./a/0002.txt": b"a caption"},
    )
    first, second = read(source)
    assert first == Example(
        id="a/0001",
        images=(Image(make_png(), "./a/0001.jpg"),),
        messages=(Message("user", "What?"), Message("assistant", "That.")),
        source="webdataset/train-0",
    )
    assert second.id == "7" and isinstance(second, Example) and len(second.images) == 1


def test_several_images_come_in_order_of_name(tmp_path: Path, source: WebDatasetSource) -> None:
    fields = {"question": "Same?", "answer": "b", "choices": ["yes", "no"], "category": "pairs"}
    members = {"k.2.png": b"2", "k.json": json.dumps(fields).encode(), "k.1.png": b"1"}
    write(tmp_path / "x.tar", members)
    (example,) = read(source)
    assert isinstance(example, Example)
    assert [image.bytes for image in example.images] == [b"1", b"2"]
    assert [m.text for m in example.messages] == ["Same?\nA. yes\nB. no", "B"]
    assert (example.answer, example.choices, example.category) == ("B", ("yes", "no"), "pairs")


def test_a_row_without_an_image_is_text(tmp_path: Path, source: WebDatasetSource) -> None:
    write(tmp_path / "x.tar", {"k.json": b'{"question": "1 + 1?", "answer": 2}'})
    (example,) = read(source)
    assert isinstance(example, Example) and example.images == ()
    assert (example.answer, example.messages[-1].text) == ("2", "2")


@pytest.mark.parametrize(
    ("members", "name", "fault", "reason"),
    [
        ({"k.png": b"1"}, "k", "malformed row", "no json member"),
        ({"k.png": b"1", "k.txt": b"A cat."}, "k", "malformed row", "no json member"),
        ({"k.json": b'{"id": "a"'}, "k", "malformed row", "not valid JSON"),
        ({"k.json": row(id="a")}, "a", "malformed row", "1 <image> and the row has 0 images"),
        ({"k.json": row(id=[])}, "k", "malformed row", "'id' that is not text"),
        ({"k.json": row(image="k.jpg")}, "k", "missing image", "none in the tar file"),
        ({"k.json": b'{"question": "?"}'}, "k", "malformed row", "no 'answer'"),
        ({"k.json": b'{"answer": "?"}'}, "k", "malformed row", "no 'question'"),
        ({"k.json": b"[]"}, "k", "malformed row", "not a JSON object"),
        ({"k.json": row(), "k.png": bytes(600)}, "k", "large image", "600 bytes"),
    ],
)
def test_a_row_of_another_form_is_refused_and_the_next_one_read(
    tmp_path: Path,
    source: WebDatasetSource,
    monkeypatch: pytest.MonkeyPatch,
    members: dict[str, bytes],
    name: str,
    fault: str,
    reason: str,
) -> None:
    monkeypatch.setattr(image_store, "MAX_IMAGE_BYTES", 500)
    write(tmp_path / "x.tar", members | {"good.json": row(), "good.png": b"1"})
    refused, good = read(source)
    assert isinstance(refused, Refused)
    assert (refused.id, refused.fault) == (name, fault)
    assert reason in refused.reason and refused.reason.endswith(".")
    assert good.id == "good"


def test_a_link_is_not_followed(tmp_path: Path, source: WebDatasetSource) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        link = tarfile.TarInfo("k.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        archive.addfile(link)
        info = tarfile.TarInfo("k.json")
        info.size = len(row())
        archive.addfile(info, io.BytesIO(row()))
    (refused,) = read(source)
    assert isinstance(refused, Refused) and refused.fault == "unsafe path"


def many(count: int) -> dict[str, bytes]:
    pairs = ({f"{n}.png": bytes([n]) * 700, f"{n}.json": row()} for n in range(count))
    return {name: content for pair in pairs for name, content in pair.items()}


@pytest.mark.parametrize("blocks", range(1, 21))
def test_rows_before_a_cut_are_read_wherever_it_is(
    tmp_path: Path, source: WebDatasetSource, blocks: int
) -> None:
    # A row is 3 blocks of image and 2 of json; the end mark follows the fourth row.
    write(tmp_path / "x.tar", many(4))
    path = tmp_path / "x.tar"
    path.write_bytes(path.read_bytes()[: 512 * blocks])
    *rows, refused = read(source)
    # That the last row is whole shows only when another one begins.
    assert [r.id for r in rows] == [str(n) for n in range((blocks - 1) // 5)]
    assert all(isinstance(r, Example) for r in rows)
    assert isinstance(refused, Refused) and "cannot be read on from row" in refused.reason
    assert refused.id == f"x.tar:{len(rows) + 1}"


def test_a_damaged_header_is_not_taken_for_the_end(
    tmp_path: Path, source: WebDatasetSource
) -> None:
    write(tmp_path / "x.tar", many(4))
    content = bytearray((tmp_path / "x.tar").read_bytes())
    content[512 * 10 + 3] ^= 0xFF  # in the name of the third row's image
    (tmp_path / "x.tar").write_bytes(content)
    assert [type(r) for r in read(source)] == [Example, Refused]


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, b"\x1f\x8b"])
def test_a_file_that_is_no_tar_is_refused_and_the_next_one_read(
    tmp_path: Path, source: WebDatasetSource, content: bytes
) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    write(tmp_path / "b.tar", many(1))
    refused, good = read(source)
    assert isinstance(refused, Refused) and refused.id == "a.tar:1"
    assert good.id == "0"


def test_stretches_are_files_and_together_the_source(
    tmp_path: Path, source: WebDatasetSource
) -> None:
    write(tmp_path / "b.tar", many(3))
    write(tmp_path / "a.tar.gz", {"only.json": b"{"}, "w:gz")
    write(tmp_path / "c.tar", {})
    cut = list(spans(source, 2))
    assert [(os.path.basename(span.file), span.rows) for span in cut] == [
        ("a.tar.gz", None),
        ("b.tar", None),
        ("c.tar", None),
    ]
    assert [r for span in cut for r in read_span(span)] == list(read(source))
    assert [r.id for r in read(source)] == ["only", "0", "1", "2"]
    limited = source.model_copy(update={"limit": 2})
    assert [r.id for span in spans(limited, 100) for r in read_span(span)] == ["only", "0"]
    assert [r.id for r in read(limited)] == ["only", "0"]


def test_no_file_is_an_error_that_names_the_pattern(source: WebDatasetSource) -> None:
    for use in (
        lambda: list(read(source)),
        lambda: list(spans(source, 2)),
        lambda: fingerprint(source),
    ):
        with pytest.raises(ValueError, match=r"There is no tar file .*\*\.tar\*\.$"):
            use()


def test_the_fingerprint_follows_the_files(tmp_path: Path, source: WebDatasetSource) -> None:
    write(tmp_path / "a.tar", many(1))
    first = fingerprint(source)
    assert fingerprint(source) == first
    os.utime(tmp_path / "a.tar", (1, 1))
    second = fingerprint(source)
    assert second != first
    write(tmp_path / "b.tar", many(1))
    assert fingerprint(source) != second


def test_a_relative_pattern_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.tar", many(1))
    monkeypatch.chdir(tmp_path)
    made: Any = absolute(WebDatasetSource(shards="*.tar"))
    monkeypatch.chdir("/")
    assert [r.id for span in spans(made, 9) for r in read_span(span)] == ["0"]
