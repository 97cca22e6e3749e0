"""The evaluation job with its shards and its results in an S3 bucket."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from object_store import names
from rich.console import Console
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))

from scripted_server import WorldSearcher, http_world
from scripted_world import ScriptedGenerator, World, example

from jobs.asking import measure
from jobs.cli import main as app
from jobs.evaluate import evaluate
from stagebeam.data.writing import write_shards
from stagebeam.recipe import DataConfig, Recipe
from stagebeam.storage import RemotePath

pytestmark = pytest.mark.usefixtures("no_key")

ROWS, SOME = 12, 5
METHODS = 4  # greedy and three searches at one N


@pytest.fixture(scope="module")
def world() -> World:
    return World(tuple(example(number) for number in range(ROWS)))


def recipe_of(folder: RemotePath, rows: int, world: World | None = None) -> Recipe:
    shards = folder / "held-out"
    if world is not None:
        write_shards(world.examples, shards, DataConfig(shards=shards))
    evaluation = {
        "output_dir": str(folder / "out"),
        "shards": str(shards),
        "rows": rows,
        "candidates": [2],
        "concurrency": 4,
        "card_questions": 0,
    }
    return Recipe.model_validate(
        {
            "name": "remote",
            "model": {"path": "none"},
            "data": {"shards": "none"},
            "search": {"temperature": 1.0},
            "evaluation": evaluation,
        }
    )


def lines(file: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_an_evaluation_by_url_goes_on_where_it_stopped_and_leaves_all_its_files(
    bucket: RemotePath, world: World, console: Console, tmp_path: Path
) -> None:
    folder = bucket / "evaluation"
    searcher = WorldSearcher(world, ScriptedGenerator(world))
    with http_world(searcher) as url:
        evaluate(recipe_of(folder, SOME, world), url=url, console=console)
        assert len(searcher.asked) == METHODS * SOME
        page = evaluate(recipe_of(folder, ROWS), url=url, console=console)
        assert len(searcher.asked) == METHODS * ROWS, "what was answered is not asked again"
        out = folder / "out"
        again = shlex.split(json.loads((out / "report.json").read_text())["repeat"]["command"])
        assert str(out / "recipe.yaml") in again
        done = CliRunner().invoke(app, again[1:])
        assert done.exit_code == 0, done.output
        assert len(searcher.asked) == 2 * METHODS * ROWS, "the command asks everything again"
    assert page == out / "report.html"
    answers, traces = lines(out / "answers.jsonl"), lines(out / "traces.jsonl")
    assert len(answers) == METHODS * ROWS
    assert {row["trace_id"] for row in answers} <= {trace["id"] for trace in traces}
    report = json.loads((out / "report.json").read_text())
    assert report["greedy"]["questions"] == ROWS
    assert report["recipe"]["evaluation"]["output_dir"] == str(out)
    assert report["repeat"]["files"][0]["path"] == str(folder / "held-out" / "part-00000.parquet")
    assert {"report.html", "report.md", "recipe.yaml", "identity.json"} <= set(names(out))
    assert any(name.endswith(".wandb") for name in names(out)), "the offline run goes along"

    shown = tmp_path / "trace.html"
    words = ["trace", str(out / "traces.jsonl"), "--id", traces[0]["id"], "--output", str(shown)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert traces[0]["id"] in shown.read_text()


def test_an_evaluation_that_breaks_off_keeps_what_was_answered(
    bucket: RemotePath, world: World, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bucket / "broken-off"
    searcher = WorldSearcher(world, ScriptedGenerator(world))

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    with http_world(searcher) as url:
        with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
            patch.setattr("jobs.evaluate.summarise", full)
            evaluate(recipe_of(folder, ROWS, world), url=url, console=console)
        assert len(lines(folder / "out" / "answers.jsonl")) == METHODS * ROWS
        evaluate(recipe_of(folder, ROWS), url=url, console=console)
    assert len(searcher.asked) == METHODS * ROWS


async def test_what_needs_files_on_a_disk_says_so(
    bucket: RemotePath, world: World, console: Console
) -> None:
    recipe = recipe_of(bucket / "x", ROWS)
    searcher = WorldSearcher(world, ScriptedGenerator(world))
    told = pytest.raises(ValueError, match=r"^s3://.*/x/out is a URL, and this needs a path on")
    with http_world(searcher) as url, told:
        await measure(recipe, url, world.examples, console=console)
