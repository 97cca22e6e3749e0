"""One big JSON array, read a row at a time, with `<image>` placeholders."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagebeam.data.refusal import Refused
from stagebeam.data.sources import fingerprint, json_array, read, read_span, spans
from stagebeam.records import Example, Image, Message
from stagebeam.source_config import LlavaInstructSource


def row(name: object, text: str = "<image>\nWhat?", image: object = "1.png") -> dict[str, Any]:
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "That."}]
    return {"id": name, "image": image, "conversations": turns}


@pytest.fixture
def write(tmp_path: Path, make_png: Callable[..., bytes]) -> Callable[..., LlavaInstructSource]:
    (tmp_path / "secret.png").write_bytes(make_png())
    (tmp_path / "images").mkdir()
    for name in ("1.png", "2.png"):
        (tmp_path / "images" / name).write_bytes(make_png())

    def made(content: object) -> LlavaInstructSource:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / "mix.json").write_bytes(raw)
        return LlavaInstructSource(
            annotations=tmp_path / "mix.json", image_root=tmp_path / "images"
        )

    return made


Write = Callable[..., LlavaInstructSource]


def test_rows_become_examples_without_placeholders(
    write: Write, make_png: Callable[..., bytes]
) -> None:
    (example,) = read(write([row("000033")]))
    assert example == Example(
        id="000033",
        images=(Image(make_png(), "1.png"),),
        messages=(Message("user", "What?"), Message("assistant", "That.")),
        source="llava_instruct/mix",
    )


@pytest.mark.parametrize(
    ("text", "images", "asked"),
    [
        ("What?\n<image>", "1.png", "What?"),
        ("<image>What?", "1.png", "What?"),
        ("<image>\n<image>\nSame?", ["1.png", "2.png"], "Same?"),
        ("Left <image> right <image>\n\nSame?", ["1.png", "2.png"], "Left right\n\nSame?"),
        ("One: <image>\nTwo: <image>\nSame?", ["1.png", "2.png"], "One:\nTwo:\nSame?"),
        ("A line\n\n  kept as it is", None, "A line\n\n  kept as it is"),
    ],
)
def test_a_placeholder_goes_with_a_line_that_holds_nothing_else(
    write: Write, text: str, images: object, asked: str
) -> None:
    (example,) = read(write([row("a", text, images)]))
    assert isinstance(example, Example)
    assert example.messages[0].text == asked


def test_ids_stay_as_they_come_though_they_repeat(write: Write) -> None:
    rows = read(write([row("7"), row(7, "<image>\nWhy?"), row("ä", "text", None)]))
    assert [r.id for r in rows] == ["7", "7", "ä"]


def later(first: str, second: str) -> dict[str, Any]:
    made = row("a", first)
    made["conversations"] += row("a", second)["conversations"]
    return made


@pytest.mark.parametrize(
    ("element", "fault", "reason"),
    [
        (row("a", "no placeholder"), "malformed row", "have 0 <image> and the row has 1 images"),
        (row("a", "<image> <image>"), "malformed row", "have 2 <image> and the row has 1 images"),
        (row("a", "<image>", None), "malformed row", "have 1 <image> and the row has 0 images"),
        (later("What?", "<image>"), "malformed row", "after the first user turn"),
        (later("<image>", "<image>"), "malformed row", "have 2 <image>"),
        (row(None), "malformed row", "'id' that is not text"),
        (row(True), "malformed row", "'id' that is not text"),
        (row("a", image=[1]), "malformed row", "not text"),
        (row("a", image="9.png"), "missing image", "no image file 9.png"),
        (row("a", image="../secret.png"), "unsafe path", "leads out"),
        ([], "malformed row", "not a JSON object"),
        ("text, with [marks", "malformed row", "not a JSON object"),
    ],
)
def test_a_row_of_another_form_is_refused_and_the_next_one_read(
    write: Write, element: object, fault: str, reason: str
) -> None:
    refused, good = read(write([element, row("good")]))
    assert isinstance(refused, Refused) and refused.fault == fault
    assert reason in refused.reason and refused.reason.endswith(".")
    assert json.loads(refused.row) == element
    assert isinstance(good, Example) and good.id == "good"


def test_an_element_that_is_not_json_costs_itself_alone(write: Write) -> None:
    good = json.dumps(row("b"))
    content = f'[{{"id": "a", oops}}, {good}, , {good}]'.encode()
    ids = [r.id for r in read(write(content))]
    assert ids == ["mix.json:1", "b", "mix.json:3", "b"]


@pytest.mark.parametrize("size", [1, 2, 100])
def test_whole_rows_before_a_cut_are_read_wherever_it_is(write: Write, size: int) -> None:
    content = json.dumps([row("a"), row("b"), row("c")]).encode()
    ends = [content.index(b'{"id": "b"') - 2, content.index(b'{"id": "c"') - 2, len(content) - 1]
    for cut in range(1, len(content)):
        source = write(content[:cut])
        *rows, refused = [r for span in spans(source, size) for r in read_span(span)]
        assert len(rows) == sum(end <= cut for end in ends), content[:cut]
        assert all(isinstance(r, Example) for r in rows)
        assert isinstance(refused, Refused) and "ends early" in refused.reason
        assert refused.id == f"mix.json:{len(rows) + 1}"


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_stretches_together_are_the_source(write: Write, size: int) -> None:
    source = write([row("ä"), row("b", image="9.png"), row("c", "hi", None), 3, row("d")])
    cut = list(spans(source, size))
    assert [span.rows for span in cut[:-1]] == [size] * (len(cut) - 1)
    assert [r for span in cut for r in read_span(span)] == list(read(source))
    limited = source.model_copy(update={"limit": 3})
    assert [r for span in spans(limited, size) for r in read_span(span)] == list(read(source))[:3]
    assert list(read(limited)) == list(read(source))[:3]


values = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150)
@given(rows=st.lists(values, max_size=8), chunk=st.integers(1, 40), indent=st.none() | st.just(1))
def test_elements_are_those_of_the_array_whatever_the_chunks(
    rows: list[object], chunk: int, indent: int | None
) -> None:
    raw = json.dumps(rows, ensure_ascii=False, indent=indent).encode()
    file = io.BytesIO(raw)
    start = json_array.first_offset(file)
    assert start == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "_CHUNK", chunk)
        found = list(json_array.elements(file, start))
        assert [json.loads(element.text) for element in found] == rows
        assert not any(element.problem for element in found)
        for element in found:
            assert next(json_array.elements(file, element.offset)) == element


def test_the_file_is_not_held_whole(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "_CHUNK", 1024)
    monkeypatch.setattr(json_array, "MAX_ROW_BYTES", 4096)
    source = write([row(str(n)) for n in range(500)])  # 60 kB
    assert len(list(read(source))) == 500
    first, second = read(write([row("a"), row("b" * 10_000), row("c")]))
    assert first.id == "a"
    assert isinstance(second, Refused) and "longer than 4096 bytes" in second.reason


@pytest.mark.parametrize("use", [lambda s: list(read(s)), lambda s: list(spans(s, 2)), fingerprint])
def test_a_source_that_is_not_there_is_named(
    write: Write, tmp_path: Path, use: Callable[[LlavaInstructSource], object]
) -> None:
    source = write([row("a")])
    with pytest.raises(ValueError, match=r"absent\.json: No such file"):
        use(source.model_copy(update={"annotations": tmp_path / "absent.json"}))
    with pytest.raises(ValueError, match=r"no image folder .*nowhere"):
        use(source.model_copy(update={"image_root": tmp_path / "nowhere"}))


@pytest.mark.parametrize("content", [b"", b'{"id": "a"}\n', b"\x00\x01"])
def test_a_file_that_is_no_array_is_named(write: Write, content: bytes) -> None:
    with pytest.raises(ValueError, match=r"mix\.json does not begin with a JSON array"):
        list(spans(write(content), 2))


def test_the_fingerprint_follows_settings_and_content(write: Write) -> None:
    source = write([row("a")])
    first = fingerprint(source)
    assert fingerprint(source) == first
    assert fingerprint(source.model_copy(update={"limit": 1})) != first
    write([row("b")])
    assert fingerprint(source) != first
