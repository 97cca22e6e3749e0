"""Calibration over the platform's own HTTP interface, and its refusal of the benchmark."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))

import scripted_server
from scripted_server import WorldSearcher, http_world
from scripted_world import ScriptedGenerator, ScriptedJudge, World, example

from jobs.calibrate import calibrate_recipe
from jobs.evaluate import check_calibration, evaluate, load_questions
from stagebeam.data.writing import write_shards
from stagebeam.evaluation.question import prompt_of
from stagebeam.inference.types import Judgement, JudgeRequest
from stagebeam.recipe import DataConfig, Recipe, load_recipe
from stagebeam.search.calibration import read_calibration
from stagebeam.search.seeds import question_key

WORLD = World(tuple(example(number) for number in range(24)))
TRAINED, HELD_OUT = WORLD.examples[:12], WORLD.examples[12:]


@dataclass(frozen=True)
class Pointwise(ScriptedJudge):
    """Also tells how long each candidate is, as its score."""

    async def compare(self, request: JudgeRequest) -> Judgement:
        judgement = await super().compare(request)
        scores = tuple(float(len(text)) for text in request.candidates)
        return Judgement(judgement.verdicts, judgement.usage, scores)


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(scripted_server, "ScriptedJudge", Pointwise)
    with http_world(WorldSearcher(WORLD, ScriptedGenerator(WORLD))) as url:
        yield url


def recipe_of(folder: Path, **search: Any) -> Recipe:
    for name, examples in (("train", TRAINED), ("test", HELD_OUT)):
        if not (folder / name).exists():
            write_shards(examples, folder / name, DataConfig(shards=folder / name))
    sections = {
        "name": "tiny",
        "model": {"path": "none"},
        "data": {"shards": str(folder / "train")},
        "search": {"temperature": 1.0, "calibration": str(folder / "cal.json"), **search},
        "evaluation": {
            "output_dir": str(folder / "out"),
            "shards": str(folder / "test"),
            "candidates": [2],
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(sections))
    return load_recipe(path)


def test_the_file_holds_cutoffs_models_and_the_rows(
    tmp_path: Path, url: str, console: Console
) -> None:
    recipe = recipe_of(tmp_path, budget="adaptive", early_stop_margin=0.1, candidates=3)
    path = calibrate_recipe(recipe, rows=8, url=url, console=console)
    made = read_calibration(path)
    assert path == tmp_path / "cal.json"
    assert (made.generator, made.judge) == ("scripted-0.55", "scripted-judge")
    assert [row.id for row in made.rows] == [e.id for e in TRAINED[:8]]
    assert [row.digest for row in made.rows] == [question_key(prompt_of(e)) for e in TRAINED[:8]]
    assert all(figures.count >= 2 for figures in made.stages.values())


def test_the_questions_that_the_recipe_is_scored_on_are_refused(
    tmp_path: Path, url: str, console: Console
) -> None:
    recipe = recipe_of(tmp_path)
    with pytest.raises(ValueError, match=r"^Every question in .*; calibrate on others\.$"):
        calibrate_recipe(recipe, tmp_path / "test", url=url, console=console)
    assert not (tmp_path / "cal.json").exists()


def test_an_evaluation_on_rows_of_the_calibration_is_refused_before_it_asks(
    tmp_path: Path, url: str, console: Console
) -> None:
    recipe = recipe_of(tmp_path)
    assert recipe.evaluation is not None
    calibrate_recipe(recipe, url=url, console=console)
    made = read_calibration(tmp_path / "cal.json")
    # One of the scenes was drawn twice, and stands in the test shards too.
    assert [row.id for row in made.rows] == [e.id for e in TRAINED[:11]]
    check_calibration(recipe, load_questions(recipe.evaluation))
    leaked = recipe.evaluation.model_copy(update={"shards": tmp_path / "train"})
    recipe = recipe.model_copy(update={"evaluation": leaked})
    with pytest.raises(ValueError, match=r"^11 of the questions of the evaluation of 'tiny' "):
        evaluate(recipe, url="http://127.0.0.1:9", console=console)


def test_questions_that_all_fail_say_why(tmp_path: Path, url: str, console: Console) -> None:
    recipe = recipe_of(tmp_path, max_new_tokens=10_000)  # over the server's limit
    with pytest.raises(ValueError, match=r"^All 8 .* failed: BadRequestError: max_new_tokens is"):
        calibrate_recipe(recipe, rows=8, url=url, console=console)


def test_a_recipe_without_a_place_for_it_is_refused(tmp_path: Path, console: Console) -> None:
    recipe = recipe_of(tmp_path, calibration=None)
    with pytest.raises(ValueError, match=r"'tiny' has no search.calibration to write to"):
        calibrate_recipe(recipe, url="http://127.0.0.1:9", console=console)
