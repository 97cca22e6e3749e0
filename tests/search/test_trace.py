from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

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
        for method in ("greedy", "majority", "best_of_n", "stage_beam")
    ]


async def test_traces_come_back_from_the_file_as_they_were(
    kit: SimpleNamespace, tmp_path: Path
) -> None:
    path, made = tmp_path / "traces.jsonl", await traces(kit)
    assert write_traces(path, made[:3]) == 3
    assert write_traces(path, made[3:]) == 1
    assert list(read_traces(path)) == made


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
    with pytest.raises(ValueError, match=r"traces\.jsonl:2 is not a trace"):
        next(reader)
