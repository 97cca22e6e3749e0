"""Public benchmarks within an evaluation, over the platform's own HTTP interface."""

from __future__ import annotations

import base64
import csv
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))

from scripted_server import WorldSearcher, http_world
from scripted_world import ScriptedGenerator, World, example

from jobs.evaluate import evaluate
from stagebeam.data.writing import write_shards
from stagebeam.evaluation.benchmarks import BENCHMARKS
from stagebeam.evaluation.benchmarks.asking import example_of
from stagebeam.recipe import DataConfig, Recipe, load_recipe

SCENES = tuple(example(number) for number in range(6))
ROWS = 9
METHODS = 4  # greedy and three searches at one N
MMSTAR = BENCHMARKS["MMStar"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


@pytest.fixture
def console() -> Iterator[Console]:
    with open(os.devnull, "w") as nowhere:
        yield Console(file=nowhere)


@pytest.fixture
def benchmarks(tmp_path: Path) -> Path:
    """A folder with rows of MMStar's form."""
    columns = ("index", "image", "question", "A", "B", "C", "D", "answer", "category")
    with (tmp_path / MMSTAR.file).open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        for number in range(ROWS):
            scene = example(3 * number)  # every third one is multiple choice
            image = base64.b64encode(scene.images[0].bytes).decode()
            cells = (*"1234", scene.answer, "math" if number % 2 else "logical reasoning")
            writer.writerow((number, image, f"{number}: {scene.messages[0].text}", *cells))
    return tmp_path


@pytest.fixture
def searcher(benchmarks: Path) -> WorldSearcher:
    asked = [example_of(MMSTAR, row) for row in MMSTAR.rows(benchmarks)]
    world = World((*SCENES, *asked))
    return WorldSearcher(world, ScriptedGenerator(world))


def recipe_of(folder: Path, names: list[str], **changes: Any) -> Recipe:
    if not (folder / "held-out").exists():
        write_shards(SCENES, folder / "held-out", DataConfig(shards=folder / "held-out"))
    sections = {
        "name": "tiny",
        "model": {"path": "none"},
        "data": {"shards": "none"},
        "search": {"temperature": 1.0},
        "evaluation": {
            "output_dir": str(folder / "out"),
            "shards": str(folder / "held-out"),
            "candidates": [2],
            "benchmarks": {"folder": str(folder), "names": names, **changes},
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(sections))
    return load_recipe(folder / "recipe.yaml")


def figures(folder: Path) -> dict[str, Any]:
    path = folder / "out" / "benchmarks" / "MMStar" / "figures.json"
    return dict(json.loads(path.read_text()))


def test_every_method_has_its_figures_and_nothing_is_asked_twice(
    benchmarks: Path, searcher: WorldSearcher, console: Console
) -> None:
    recipe = recipe_of(benchmarks, ["MMStar"])
    with http_world(searcher) as url:
        evaluate(recipe, url=url, console=console)
        first, asked = figures(benchmarks), len(searcher.asked)
        assert asked == METHODS * (len(SCENES) + ROWS)
        evaluate(recipe, url=url, console=console)
        assert len(searcher.asked) == asked and figures(benchmarks) == first
    assert (first["mode"], first["rows"], first["published"]) == ("compat", ROWS, False)
    assert set(first["methods"]) == {"greedy", "majority@2", "best_of_n@2", "stage_beam@2"}
    folder = benchmarks / "out" / "benchmarks" / "MMStar"
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    traces = {json.loads(line)["id"] for line in (folder / "traces.jsonl").read_text().splitlines()}
    for name, found in first["methods"].items():
        of_it = [a for a in answers if a["method"] == name.partition("@")[0]]
        assert found["failed"] == 0
        assert found["unmatched"] == sum(a["said"] is None for a in of_it)
        overall = found["figures"]["Overall"]
        assert overall["percent"] == pytest.approx(100 * sum(a["score"] for a in of_it) / ROWS)
        assert found["figures"]["math"]["count"] == ROWS // 2
        assert {a["trace_id"] for a in of_it} <= traces and len(of_it) == ROWS
    table = (folder / "figures.md").read_text()
    assert "not the published file" in table and "| stage beam, N = 2 |" in table


def test_answers_scored_by_another_rule_are_not_mixed_in(
    benchmarks: Path, searcher: WorldSearcher, console: Console
) -> None:
    with http_world(searcher) as url:
        evaluate(recipe_of(benchmarks, ["MMStar"], rows=2), url=url, console=console)
        assert figures(benchmarks)["rows"] == 2
        strict = recipe_of(benchmarks, ["MMStar"], rows=2, mode="strict")
        with pytest.raises(ValueError, match="holds answers with another rule"):
            evaluate(strict, url=url, console=console)


@pytest.mark.parametrize(
    "names, reason",
    [
        (["MMStar", "MMMoon"], "There is no benchmark MMMoon; there are MMStar, MMStar-R, "),
        (["MMStar", "MMVet"], "The replies to MMVet have to be graded by a judge model"),
        (["MMStar", "ChartQA"], r"There is no ChartQA_TEST\.tsv in "),
    ],
)
def test_what_cannot_be_asked_or_scored_is_refused_before_anything_is(
    names: list[str], reason: str, benchmarks: Path, console: Console
) -> None:
    with pytest.raises(ValueError, match=reason):
        evaluate(recipe_of(benchmarks, names), url="http://127.0.0.1:9", console=console)
