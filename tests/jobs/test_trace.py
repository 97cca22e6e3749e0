"""`stagebeam trace`: one trace of a file as a page of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import typer
from page_world import QUESTION, World, picture
from typer.testing import CliRunner, Result

from jobs.trace import main
from stagebeam.inference.types import Prompt
from stagebeam.records import Message
from stagebeam.search import SearchSettings, answer
from stagebeam.search.trace import Trace, write_traces

app = typer.Typer()
app.command()(main)


def run(*words: object) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


@pytest.fixture(scope="module")
def made() -> list[Trace]:
    async def found(seed: int) -> Trace:
        prompt = Prompt((Message("user", QUESTION),), (picture(),))
        ids = {"generator_id": "g", "judge_id": "j"}
        return await answer(prompt, World(), World(), SearchSettings(seed=seed), **ids)

    return [asyncio.run(found(seed)) for seed in (1, 2)]


@pytest.fixture
def traces(made: list[Trace], tmp_path: Path) -> Path:
    path = tmp_path / "traces.jsonl"
    write_traces(path, made)
    return path


def test_a_trace_is_found_by_its_id_or_how_it_begins(
    traces: Path, made: list[Trace], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    for wanted in (made[1].id, made[1].id[:8]):
        result = run(traces, "--id", wanted, "--output", page)
        assert (result.exit_code, result.stdout) == (0, f"Wrote {page}.\n")
        assert made[1].id in page.read_text() and made[0].id not in page.read_text()


def test_the_questions_picture_may_be_put_in(
    traces: Path, made: list[Trace], tmp_path: Path
) -> None:
    image, page = tmp_path / "balls.png", tmp_path / "page.html"
    image.write_bytes(picture())
    run(traces, "--id", made[0].id, "--output", page, "--image", image)
    assert "data:image/png;base64," in page.read_text()
    image.write_bytes(picture() + b"x")
    result = run(traces, "--id", made[0].id, "--image", image)
    assert result.stderr == f"error: {image} is not a picture of this trace's question.\n"


def test_what_cannot_be_found_is_told_in_one_sentence(traces: Path, made: list[Trace]) -> None:
    for words, sentence in (
        ((traces,), f"{traces} holds 2 traces; name one with --id, such as {made[0].id}, "),
        ((traces, "--id", "nope"), f"{traces} holds no trace with the id nope."),
        (("missing.jsonl",), "There is no trace file at missing.jsonl."),
        ((traces, "--id", made[0].id, "--image", "x.png"), "There is no picture at x.png."),
    ):
        result = run(*words)
        assert result.exit_code == 2 and result.stderr.startswith(f"error: {sentence}")
        assert result.stderr.count("\n") == 1
