from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stagebeam.search import Trace, answer
from stagebeam.search.trace import read_traces, write_traces


async def traces(kit: SimpleNamespace) -> list[Trace]:
    judge = kit.ScriptedJudge(kit.by_number, bias=0.25)
    return [
        await answer(
            kit.ask("Wie viele Bälle?\n\u2028"),
            kit.SeededGenerator(),
            judge,
            kit.settings(method=method),
            generator_id="g",
            judge_id="j",
        )
        for method in ("greedy", "majority", "best_of_n", "sentence_beam", "stage_beam")
    ]


async def test_traces_come_back_from_the_file_as_they_were(
    kit: SimpleNamespace, tmp_path: Path
) -> None:
    path, made = tmp_path / "traces.jsonl", await traces(kit)
    assert write_traces(path, made[:3]) == 3
    assert write_traces(path, made[3:]) == 2
    assert list(read_traces(path)) == made


async def test_a_number_for_each_stage_comes_back_too(kit: SimpleNamespace, tmp_path: Path) -> None:
    wanted = kit.settings(candidates={"REASONING": 3})
    judge = kit.ScriptedJudge(kit.by_number)
    made = await answer(
        kit.ask(), kit.SeededGenerator(), judge, wanted, generator_id="g", judge_id="j"
    )
    write_traces(tmp_path / "traces.jsonl", [made])
    (read,) = read_traces(tmp_path / "traces.jsonl")
    assert read == made and read.candidates == {"REASONING": 3}


@pytest.mark.parametrize("broken", ["{", "[]", '{"schema_version": 2}', ""])
async def test_a_line_that_is_no_trace_is_named(
    kit: SimpleNamespace, tmp_path: Path, broken: str
) -> None:
    path, made = tmp_path / "traces.jsonl", await traces(kit)
    write_traces(path, made[:1])
    with path.open("a") as lines:
        lines.write(broken + "\n")
    reader = read_traces(path)
    assert next(reader) == made[0]
    with pytest.raises(ValueError, match=r"traces\.jsonl:2 is not a trace") as refused:
        next(reader)
    assert "\n" not in str(refused.value) and str(refused.value).endswith(".")


def earlier(trace: Trace) -> dict[str, Any]:
    """The same as version 1 wrote it."""
    old = trace.model_dump(mode="json")
    for name in (
        *("early_stop_margin", "budget", "max_answer_tokens", "max_seconds"),
        *("calibration", "retraces", "limited"),
    ):
        del old[name]
    for stage in old["stages"]:
        del stage["planned"]
        for candidate in stage["candidates"]:
            del candidate["score"], candidate["parent"]
        for match in stage["matches"]:
            del match["explanation"]
    return {**old, "schema_version": 1}


async def test_version_1_is_read_as_what_it_would_be_now(
    kit: SimpleNamespace, tmp_path: Path
) -> None:
    made, path = await traces(kit), tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(earlier(trace)) + "\n" for trace in made))
    assert list(read_traces(path)) == made


@pytest.mark.parametrize("version", [0, 3, None, "2"])
async def test_an_unknown_version_is_refused_in_one_sentence(
    kit: SimpleNamespace, tmp_path: Path, version: object
) -> None:
    (made, *_), path = await traces(kit), tmp_path / "traces.jsonl"
    path.write_text(json.dumps({**made.model_dump(mode="json"), "schema_version": version}) + "\n")
    with pytest.raises(
        ValueError, match=rf"traces\.jsonl:1 .* its schema_version is {version}, not one of 1, 2\.$"
    ):
        next(read_traces(path))


async def test_a_torn_last_line_is_told_and_not_written_behind(
    kit: SimpleNamespace, tmp_path: Path
) -> None:
    made, path = await traces(kit), tmp_path / "traces.jsonl"
    write_traces(path, made[:2])
    path.write_bytes(path.read_bytes()[:-7])
    reader = read_traces(path)
    assert next(reader) == made[0]
    with pytest.raises(ValueError, match=r":2 was cut off while it was written"):
        next(reader)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="ends in a line that was cut off"):
        write_traces(path, made[2:])
    assert path.read_bytes() == before


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no trace file at"):
        next(read_traces(tmp_path / "none.jsonl"))
