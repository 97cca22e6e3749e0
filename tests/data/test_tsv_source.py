"""A benchmark's TSV with base64 images."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagebeam.data.refusal import Refused
from stagebeam.data.sources import fingerprint, read, read_span, spans
from stagebeam.records import Example, Image, Message
from stagebeam.source_config import TsvSource

HEADER = ["index", "image", "hint", "question", "A", "B", "C", "answer", "category", "l2-category"]
PICTURE = bytes(range(200))
BASE64 = base64.b64encode(PICTURE).decode()


def row(index: object, **changes: object) -> list[str]:
    given = {"index": index, "image": BASE64, "question": "Which?", "A": "one", "B": "two"}
    given |= {"answer": "A", "category": "logic"} | changes
    return [str(given.get(column, "")) for column in HEADER]


Write = Callable[..., TsvSource]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def made(*rows: list[str], header: list[str] = HEADER) -> TsvSource:
        with (tmp_path / "bench.tsv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerows((header, *rows))
        return TsvSource(file=tmp_path / "bench.tsv")

    return made


def test_a_row_becomes_an_example(write: Write) -> None:
    (example,) = read(write(row(5, hint="Look left.")))
    assert example == Example(
        id="bench:5",
        images=(Image(PICTURE, "bench:5:0"),),
        messages=(
            Message("user", "Look left.\nWhich?\nA. one\nB. two"),
            Message("assistant", "A"),
        ),
        source="tsv/bench",
        split="test",
        answer="A",
        category="logic",
        choices=("one", "two"),
    )


def test_a_free_answer_a_finer_category_and_no_image_are_legal(write: Write) -> None:
    free = row(1, A="", B="", answer="forty-two", image="", category="", **{"l2-category": "x"})
    (example,) = read(write(free))
    assert isinstance(example, Example)
    assert (example.answer, example.choices, example.images) == ("forty-two", (), ())
    assert example.messages[0].text == "Which?" and example.category == "x"


def test_text_with_line_breaks_tabs_quotes_and_unicode_is_kept(write: Write) -> None:
    text = 'Ünï\n\t"quoted"\n\n終 "'
    first, second = read(write(row(1, question=text), row(2)))
    assert isinstance(first, Example) and isinstance(second, Example)
    assert first.messages[0].text == f"{text}\nA. one\nB. two"


@pytest.mark.parametrize("spell", [json.dumps, repr])
def test_a_list_of_images_is_several_images(write: Write, spell: Callable[..., str]) -> None:
    other = base64.b64encode(PICTURE[::-1]).decode()
    (example,) = read(write(row(1, image=spell([BASE64, other]))))
    assert isinstance(example, Example)
    assert [image.bytes for image in example.images] == [PICTURE, PICTURE[::-1]]


@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_short_image_is_the_index_of_another_row(write: Write, size: int) -> None:
    # Before the row and behind it, over another pointer, and to a list of images.
    shared = ["c", "a", BASE64, "b", "f", json.dumps([BASE64, BASE64])]
    source = write(*(row(n, image=image) for n, image in zip("abcdef", shared, strict=True)))
    rows = [r for span in spans(source, size) for r in read_span(span)]
    assert [len(r.images) for r in rows if isinstance(r, Example)] == [1, 1, 1, 1, 2, 2]
    assert {image.bytes for r in rows if isinstance(r, Example) for image in r.images} == {PICTURE}


@pytest.mark.parametrize(
    ("bad", "name", "fault", "reason"),
    [
        (row(1, answer=""), "bench:1", "malformed row", "The row has no answer"),
        (row(1, question=" "), "bench:1", "malformed row", "The row has no question"),
        (row(""), "bench.tsv:1", "malformed row", "The row has no index"),
        (row(1, image="77"), "bench:1", "missing image", "row 77, which is not there"),
        (row(1, image="1"), "bench:1", "missing image", "row 1, which leads back"),
        (row(1, image="x" * 64), "bench:1", "missing image", "which is not there"),
        (row(1, image="x" * 65), "bench:1", "broken image", "not base64"),
        (row(1, image="!" * 100), "bench:1", "broken image", "not base64"),
        (row(1, image="[" + "!" * 100), "bench:1", "broken image", "like a list"),
        (row(1, image=json.dumps([BASE64, 5])), "bench:1", "broken image", "not base64"),
        (row(1, B="", C="three"), "bench:1", "malformed row", "no option B and has one after it"),
        (["1", "2"], "bench.tsv:1", "malformed row", "2 cells and the header 10"),
        ([*row(1), ""], "bench.tsv:1", "malformed row", "11 cells and the header 10"),
    ],
)
def test_a_row_of_another_form_is_refused_and_the_next_one_read(
    write: Write, bad: list[str], name: str, fault: str, reason: str
) -> None:
    refused, good = read(write(bad, row("good")))
    assert isinstance(refused, Refused)
    assert (refused.id, refused.fault) == (name, fault)
    assert reason in refused.reason and refused.reason.endswith(".")
    assert BASE64 not in refused.row
    assert good.id == "bench:good" and isinstance(good, Example)


def test_images_that_share_each_other_in_a_ring_are_refused(write: Write) -> None:
    rows = list(read(write(row(1, image="2"), row(2, image="3"), row(3, image="2"))))
    assert [r.fault for r in rows if isinstance(r, Refused)] == ["missing image"] * 3


def test_bytes_that_are_not_utf8_cost_their_row_alone(write: Write) -> None:
    source = write(row(1, question="Wo?"), row(2))
    source.file.write_bytes(source.file.read_bytes().replace(b"Wo?", b"W\xff?"))
    refused, good = read(source)
    assert isinstance(refused, Refused) and refused.fault == "text"
    refused.row.encode()
    assert isinstance(good, Example)


def test_a_quotation_mark_that_is_not_closed_is_told(write: Write) -> None:
    source = write(row(1), row(2), row(3))
    content = source.file.read_bytes().replace(b"\n2\t", b'\n"2\t')
    source.file.write_bytes(content)
    first, refused = read(source)
    assert isinstance(first, Example)
    assert isinstance(refused, Refused) and "not closed" in refused.reason


def test_a_bare_carriage_return_costs_its_row_alone(write: Write) -> None:
    source = write(row(1, question="Wo?"), row(2))
    source.file.write_bytes(source.file.read_bytes().replace(b"Wo?", b"W\ro?"))
    refused, good = read(source)
    assert isinstance(refused, Refused) and refused.id == "bench.tsv:1"
    assert isinstance(good, Example)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1)


@settings(max_examples=60)
@given(questions=st.lists(texts.filter(str.strip), min_size=1, max_size=9), size=st.integers(1, 10))
def test_stretches_together_are_the_source(
    tmp_path_factory: pytest.TempPathFactory, questions: list[str], size: int
) -> None:
    path = tmp_path_factory.mktemp("tsv") / "bench.tsv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\r\n")
        writer.writerow(HEADER)
        writer.writerows(row(n, question=q, A="", B="") for n, q in enumerate(questions))
    source = TsvSource(file=path)
    rows = list(read(source))
    asked = [r.messages[0].text for r in rows if isinstance(r, Example)]
    assert asked == [question.strip() for question in questions]
    cut = list(spans(source, size))
    assert max(span.rows or 0 for span in cut) <= size
    assert [r for span in cut for r in read_span(span)] == rows
    limited = source.model_copy(update={"limit": 2})
    assert [r for span in spans(limited, size) for r in read_span(span)] == rows[:2]


def test_an_image_of_megabytes_fits(write: Write) -> None:
    (example,) = read(write(row(1, image=base64.b64encode(bytes(3_000_000)).decode())))
    assert isinstance(example, Example) and len(example.images[0].bytes) == 3_000_000


@pytest.mark.parametrize("use", [lambda s: list(read(s)), lambda s: list(spans(s, 2))])
def test_a_file_that_is_not_there_or_lacks_a_column_is_named(
    write: Write, tmp_path: Path, use: Callable[[TsvSource], object]
) -> None:
    with pytest.raises(ValueError, match=r"TSV file .*absent\.tsv: No such file"):
        use(TsvSource(file=tmp_path / "absent.tsv"))
    with pytest.raises(ValueError, match=r"bench\.tsv has no column image, answer\.$"):
        use(write(header=["index", "question"]))
    (tmp_path / "bench.tsv").write_bytes(b"\x89PNG\r\x1a\n\0")
    with pytest.raises(ValueError, match="has no column index, image"):
        use(TsvSource(file=tmp_path / "bench.tsv"))


def test_the_fingerprint_follows_settings_and_content(write: Write) -> None:
    source = write(row(1))
    first = fingerprint(source)
    assert fingerprint(source) == first
    assert fingerprint(source.model_copy(update={"split": "val"})) != first
    write(row(2))
    assert fingerprint(source) != first
