"""Images in a zip file, whole or in parts, are read in place."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagebeam.data.refusal import Refused
from stagebeam.data.sources import image_store, read
from stagebeam.data.sources.image_store import open_store
from stagebeam.data.sources.joined_file import JoinedFile
from stagebeam.records import Example
from stagebeam.source_config import LlavaCotSource

TURNS = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]


def archive(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return buffer.getvalue()


def split(folder: Path, content: bytes, size: int) -> Path:
    """`image.zip` in parts of `size` bytes, as `split -b` makes them."""
    folder.mkdir(exist_ok=True)
    for number, start in enumerate(range(0, len(content), size)):
        suffix = chr(ord("a") + number // 26) + chr(ord("a") + number % 26)
        (folder / f"image.zip.part-{suffix}").write_bytes(content[start : start + size])
    return folder / "image.zip"


def source(folder: Path, root: Path, *paths: str) -> LlavaCotSource:
    rows = ({"id": path, "image": path, "conversations": TURNS} for path in paths)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return LlavaCotSource(annotations=folder / "train.jsonl", image_root=root)


@pytest.mark.parametrize("size", [37, 100, 1000])
def test_entries_are_read_across_parts_and_nothing_is_unpacked(
    tmp_path: Path, make_png: Callable[..., bytes], size: int
) -> None:
    # An entry is longer than 37 bytes, so it lies across parts.
    images = {f"sqa/{n}.png": make_png(colour=n) for n in range(5)}
    root = split(tmp_path / "parts", archive(images), size)
    before = sorted(root.parent.iterdir())
    rows = list(read(source(tmp_path, root, *images)))
    assert [r.images[0].bytes for r in rows if isinstance(r, Example)] == list(images.values())
    assert [r.source for r in rows if isinstance(r, Example)] == ["llava_cot/sqa"] * 5
    assert sorted(root.parent.iterdir()) == before


def test_a_whole_zip_file_is_read_too(tmp_path: Path, make_png: Callable[..., bytes]) -> None:
    (tmp_path / "image.zip").write_bytes(archive({"a.png": make_png()}))
    (row,) = read(source(tmp_path, tmp_path / "image.zip", "a.png"))
    assert isinstance(row, Example) and row.images[0].bytes == make_png()


def test_a_common_top_folder_may_be_left_out_but_the_exact_name_comes_first(
    tmp_path: Path,
) -> None:
    names = {"top/a.png": b"1", "top/top/a.png": b"2", "top/b.png": b"3"}
    (tmp_path / "image.zip").write_bytes(archive(names))
    store = open_store(tmp_path / "image.zip")
    assert store.read("top/a.png").bytes == b"1"
    assert store.read("a.png").bytes == b"1"
    assert store.read("b.png").bytes == b"3"
    assert store.read("b.png").path == "b.png"


def test_without_a_common_top_folder_none_is_added(tmp_path: Path) -> None:
    (tmp_path / "image.zip").write_bytes(archive({"top/a.png": b"1", "other/a.png": b"2"}))
    (row,) = read(source(tmp_path, tmp_path / "image.zip", "a.png"))
    assert isinstance(row, Refused) and row.fault == "missing image"


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("../secret.png", "unsafe path"),
        ("/etc/hostname", "unsafe path"),
        ("sqa/../../secret.png", "unsafe path"),
        ("sqa/9.png", "missing image"),
        ("sqa", "missing image"),
        ("", "missing image"),
    ],
)
def test_a_path_finds_nothing_but_entries(tmp_path: Path, path: str, fault: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    names = {"sqa/": b"", "sqa/1.png": b"1", "../secret.png": b"slip", "/etc/hostname": b"slip"}
    (tmp_path / "image.zip").write_bytes(archive(names))
    (row,) = read(source(tmp_path, tmp_path / "image.zip", path))
    assert isinstance(row, Refused) and row.fault == fault
    assert row.reason.endswith(".") and "\n" not in row.reason


def test_a_damaged_entry_costs_its_row_alone(tmp_path: Path) -> None:
    content = bytearray(archive({"a.png": b"a" * 500, "b.png": b"b" * 500}))
    content[content.index(b"a.png") + 5] ^= 0xFF
    (tmp_path / "image.zip").write_bytes(content)
    bad, good = read(source(tmp_path, tmp_path / "image.zip", "a.png", "b.png"))
    assert isinstance(bad, Refused) and bad.fault == "broken image"
    assert isinstance(good, Example)


def test_an_entry_that_would_swell_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_store, "MAX_IMAGE_BYTES", 10_000)
    (tmp_path / "image.zip").write_bytes(archive({"a.png": bytes(1_000_000)}))
    (row,) = read(source(tmp_path, tmp_path / "image.zip", "a.png"))
    assert isinstance(row, Refused) and row.fault == "large image"


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        ("ab", r"image\.zip\.part-ab of .* is not there"),
        ("ad", r"is not whole: .*last part here is image\.zip\.part-ac"),
    ],
)
def test_a_part_that_is_absent_is_named(tmp_path: Path, lost: str, reason: str) -> None:
    content = archive({"a.png": bytes(range(256)) * 2})
    root = split(tmp_path / "parts", content, len(content) // 4 + 1)
    (root.parent / f"image.zip.part-{lost}").unlink()
    with pytest.raises(ValueError, match=reason):
        list(read(source(tmp_path, root, "a.png")))


def test_a_part_that_is_not_whole_is_named(tmp_path: Path) -> None:
    content = archive({"a.png": bytes(range(256)) * 2})
    root = split(tmp_path / "parts", content, len(content) // 4 + 1)
    part = root.parent / "image.zip.part-ab"
    part.write_bytes(part.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"image\.zip\.part-ab has an odd length"):
        list(read(source(tmp_path, root, "a.png")))


def test_a_zip_file_that_changed_is_opened_again(tmp_path: Path) -> None:
    root = tmp_path / "image.zip"
    root.write_bytes(archive({"a.png": b"1"}))
    assert open_store(root) is open_store(root)
    root.write_bytes(archive({"a.png": b"22"}))
    assert open_store(root).read("a.png").bytes == b"22"


@given(
    pieces=st.lists(st.binary(max_size=9), min_size=1, max_size=6),
    start=st.integers(0, 60),
    size=st.integers(0, 60),
)
def test_joined_parts_read_as_their_concatenation(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], start: int, size: int
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    paths = [folder / str(number) for number in range(len(pieces))]
    for path, piece in zip(paths, pieces, strict=True):
        path.write_bytes(piece)
    whole = b"".join(pieces)
    with io.BufferedReader(JoinedFile(paths)) as joined:
        joined.seek(start)
        assert joined.read(size) == whole[start : start + size]
        assert joined.seek(0, io.SEEK_END) == len(whole)
