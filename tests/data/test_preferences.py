"""Preference pairs: found at the first fault, and kept in whole files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stagebeam.data.preferences import (
    Preference,
    Preferences,
    first_fault,
    read_preferences,
    write_preferences,
)
from stagebeam.records import Example, Image, Message
from stagebeam.stages import STAGES, Stage, render, wrap

GOLD = {
    Stage.SUMMARY: "I will count.",
    Stage.CAPTION: "Two shapes.",
    Stage.REASONING: "That is 2.",
    Stage.CONCLUSION: "2",
}
QUESTION = Message("user", "How many?")
EXAMPLE = Example(
    "row",
    (Image(b"png", "row.png"),),
    (QUESTION, Message("assistant", render(GOLD))),
    "test",
    category="counting",
)


def answer(**changes: str) -> str:
    return render({stage: changes.get(stage.name, body) for stage, body in GOLD.items()})


@pytest.mark.parametrize("stage", STAGES)
def test_the_first_stage_that_differs_is_the_fault(stage: Stage) -> None:
    later = {s.name: "wrong" for s in STAGES[STAGES.index(stage) :]}  # this one and all after
    found = first_fault(EXAMPLE, answer(**later))
    space = "" if stage is STAGES[0] else " "  # prefix and text together are as `render` writes
    assert found == Preference(
        id="row",
        images=EXAMPLE.images,
        messages=(QUESTION,),
        stage=stage,
        prefix=" ".join(wrap(s, GOLD[s]) for s in STAGES[: STAGES.index(stage)]),
        chosen=space + wrap(stage, GOLD[stage]),
        rejected=space + wrap(stage, "wrong"),
        category="counting",
    )


def test_a_right_answer_has_no_fault_however_it_is_spaced() -> None:
    assert first_fault(EXAMPLE, answer()) is None
    assert first_fault(EXAMPLE, answer().replace(" <", "<").replace("> ", ">\n")) is None


def test_an_absent_or_empty_stage_teaches_nothing() -> None:
    cut = answer(REASONING="wrong").partition("<REASONING>")[0]
    assert first_fault(EXAMPLE, cut) is None
    empty = answer().replace(wrap(Stage.CAPTION, GOLD[Stage.CAPTION]), "<CAPTION> </CAPTION>")
    assert first_fault(EXAMPLE, empty) is None
    assert first_fault(EXAMPLE, "no stages at all") is None


def test_a_fault_before_the_absent_stage_counts() -> None:
    cut = answer(SUMMARY="wrong").partition("<REASONING>")[0]
    found = first_fault(EXAMPLE, cut)
    assert found is not None and found.stage is Stage.SUMMARY


def test_the_last_turn_of_several_is_compared() -> None:
    earlier = (Message("user", "First?"), Message("assistant", answer(CONCLUSION="1")))
    found = first_fault(
        replace(EXAMPLE, messages=(*earlier, *EXAMPLE.messages)), answer(CONCLUSION="3")
    )
    assert found is not None
    assert found.messages == (*earlier, QUESTION)
    assert found.rejected == " <CONCLUSION> 3 </CONCLUSION>"


def preferences() -> list[Preference]:
    first = first_fault(EXAMPLE, answer(CAPTION="Three shapes."))
    second = first_fault(replace(EXAMPLE, images=(), category=None), answer(CONCLUSION="3"))
    assert first is not None and second is not None
    return [first, second]


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    assert write_preferences(path, iter(preferences())) == 2
    assert read_preferences(path) == preferences()
    assert pq.read_table(path).num_rows == 2


def test_a_row_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    write_preferences(tmp_path / "pairs.parquet", preferences())
    pairs = Preferences(tmp_path / "pairs.parquet")
    assert (len(pairs), pairs[1], pairs[-2:]) == (2, preferences()[1], preferences())
    assert list(pairs) == preferences()
    with pytest.raises(IndexError):
        pairs[2]


def test_no_preferences_make_an_empty_file(tmp_path: Path) -> None:
    assert write_preferences(tmp_path / "none.parquet", []) == 0
    assert read_preferences(tmp_path / "none.parquet") == []


def test_a_half_written_file_never_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pairs.parquet"
    write_preferences(path, preferences()[:1])

    def cut_short(writer: object, table: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", cut_short)
        with pytest.raises(OSError, match="No space left"):
            write_preferences(path, preferences())
    assert read_preferences(path) == preferences()[:1]  # the older file, whole

    def broken() -> Iterator[Preference]:
        yield preferences()[0]
        raise RuntimeError("the sampler failed")

    with pytest.raises(RuntimeError):
        write_preferences(tmp_path / "other.parquet", broken())
    assert not (tmp_path / "other.parquet").exists()


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no preference file at"):
        read_preferences(tmp_path / "nothing.parquet")
