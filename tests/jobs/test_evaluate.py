"""The evaluation job against the platform's own HTTP interface on a local port."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))

from scripted_server import WorldSearcher, http_world
from scripted_world import ScriptedGenerator, World, calibrated, example

from jobs.cli import main
from jobs.evaluate import alone, evaluate, load_questions
from stagebeam.data.writing import write_shards
from stagebeam.evaluation.results import SEARCHES
from stagebeam.inference.wording import wording
from stagebeam.models.tiny.build import build_tiny
from stagebeam.recipe import DataConfig, JudgeConfig, Recipe, ServeConfig, load_recipe
from stagebeam.records import Example
from stagebeam.search.calibration import read_calibration, write_calibration

pytestmark = pytest.mark.usefixtures("no_key")

ROOT = Path(__file__).parents[2]
ROWS = 24
METHODS = 4  # greedy and three searches at one N


@pytest.fixture(scope="module")
def world():
    return World(tuple(example(number) for number in range(ROWS)))


@pytest.fixture
def searcher(world):
    return WorldSearcher(world, ScriptedGenerator(world))


def write_recipe(folder: Path, examples: tuple[Example, ...], **sections: object) -> Path:
    shards = folder / "held-out"
    write_shards(examples, shards, DataConfig(shards=shards))
    path = folder / "recipe.yaml"
    recipe = {
        "name": "tiny",
        "model": {"path": "none"},
        "data": {"shards": "none"},
        "search": {"temperature": 1.0},
        "evaluation": {
            "output_dir": str(folder / "out"),
            "shards": str(shards),
            "rows": ROWS,
            "candidates": [2],
            "concurrency": 4,
        },
    }
    path.write_text(yaml.safe_dump(recipe | sections))
    return path


@pytest.fixture
def recipe_file(world, tmp_path) -> Path:
    return write_recipe(tmp_path, world.examples)


@pytest.fixture
def recipe(recipe_file) -> Recipe:
    return load_recipe(recipe_file)


def report_of(recipe: Recipe) -> dict:
    assert recipe.evaluation is not None
    return json.loads((recipe.evaluation.output_dir / "report.json").read_text())


def test_an_evaluation_leaves_a_report_a_page_traces_and_an_offline_run(
    recipe, searcher, world, console
):
    stronger = WorldSearcher(world, ScriptedGenerator(world, skill=0.8))
    with http_world(searcher) as url, http_world(stronger) as judge_url:
        page = evaluate(recipe, url=url + "/", judge_url=judge_url, console=console)
    report = report_of(recipe)
    for result in (
        report["greedy"],
        report["judge_alone"],
        *(report[m]["2"] for m in ("stage_beam", "best_of_n", "majority", "oracle")),
    ):
        assert result["questions"] == ROWS and result["failed"] == 0
    assert report["stage_beam"]["2"]["cost"]["judge_tokens"] > 0
    assert report["fingerprints"]["generator"] == "scripted-0.55"
    assert "N = 2" in report["claim"] and "judge's own model" in report["claim"]
    assert report["wandb"]["mode"] == "offline"
    assert Path(report["wandb"]["offline_dir"]).is_relative_to(page.parent)
    assert page.read_text().count("<article") >= 5
    text = (page.parent / "report.md").read_text()
    assert "| stage beam, N = 2 |" in text and "## Repeat it" in text
    assert load_recipe(page.parent / "recipe.yaml") == recipe
    lines = (page.parent / "answers.jsonl").read_text().splitlines()
    assert Counter(json.loads(line)["method"] for line in lines) == dict.fromkeys(
        ("greedy", "majority", "best_of_n", "stage_beam"), ROWS
    )


def test_a_finished_evaluation_asks_nothing_again_unless_it_is_fresh(recipe, searcher, console):
    with http_world(searcher) as url:
        evaluate(recipe, url=url, console=console)
        first = report_of(recipe)
        assert len(searcher.asked) == METHODS * ROWS
        evaluate(recipe, url=url, console=console)
        assert len(searcher.asked) == METHODS * ROWS
        assert report_of(recipe)["stage_beam"] == first["stage_beam"]
        evaluate(recipe, url=url, fresh=True, console=console)
        assert len(searcher.asked) == 2 * METHODS * ROWS


def with_every_search(recipe: Recipe, calibration: Path | None) -> Recipe:
    assert recipe.evaluation is not None
    evaluation = recipe.evaluation.model_copy(update={"methods": SEARCHES})
    search = recipe.search.model_copy(update={"calibration": calibration})
    return recipe.model_copy(update={"evaluation": evaluation, "search": search})


@pytest.fixture
def calibration(tmp_path) -> Path:
    """Cutoffs for the models that `searcher` serves."""
    path = tmp_path / "calibration.json"
    asyncio.run(calibrated(path))
    models = {"generator": "scripted-0.55", "judge": "scripted-judge"}
    write_calibration(read_calibration(path).model_copy(update=models), path)
    return path


def test_every_method_is_asked_and_retracing_by_the_recipes_calibration(
    recipe, searcher, calibration, console
):
    searcher.calibration = calibration
    with http_world(searcher) as url:
        evaluate(recipe, url=url, console=console)  # without the new methods
        evaluate(with_every_search(recipe, calibration), url=url, console=console)
    assert len(searcher.asked) == (METHODS + 2) * ROWS
    report = report_of(recipe)
    for method in SEARCHES:
        assert report[method]["2"]["questions"] == ROWS and report[method]["2"]["failed"] == 0
    compared = {(c["first"], c["second"]) for c in report["comparisons"]}
    assert {("stage_beam@2", "sentence_beam@2"), ("retrace@2", "stage_beam@2")} <= compared
    assert "retracing with N = 2" in report["claim"]


def test_retracing_without_its_calibration_is_refused_before_anything_is_asked(
    recipe, searcher, tmp_path, console
):
    with http_world(searcher) as url:
        with pytest.raises(ValueError, match=r"'tiny' evaluates retrace and has no search\.calib"):
            evaluate(with_every_search(recipe, None), url=url, console=console)
        absent = with_every_search(recipe, tmp_path / "none.json")
        with pytest.raises(ValueError, match=r"There is no calibration at .*none\.json"):
            evaluate(absent, url=url, console=console)
    assert searcher.asked == []


def test_retracing_by_other_cutoffs_than_the_recipes_is_not_scored(
    recipe, searcher, world, calibration, tmp_path, console
):
    recipe = with_every_search(recipe, calibration)
    assert recipe.evaluation is not None
    only = recipe.evaluation.model_copy(update={"methods": ("retrace",), "rows": 3})
    recipe = recipe.model_copy(update={"evaluation": only})
    other = read_calibration(calibration).model_copy(update={"z": 0.5})
    searcher.calibration = tmp_path / "other.json"
    write_calibration(other, searcher.calibration)
    refused = f"All 3 .* calibration {other.fingerprint}, the recipe names"
    with http_world(searcher) as url, pytest.raises(ValueError, match=refused):
        evaluate(recipe, url=url, console=console)
    searcher.generator = ScriptedGenerator(world, skill=0.9)
    refused = r"made with the generator scripted-0\.55, and this"
    with http_world(searcher) as url, pytest.raises(ValueError, match=refused):
        evaluate(recipe, url=url, fresh=True, console=console)


@pytest.mark.parametrize("what", ["generator", "search"])
def test_answers_of_another_run_are_never_mixed_in(what, recipe, searcher, world, console):
    with http_world(searcher) as url:
        evaluate(recipe, url=url, console=console)
    assert recipe.evaluation is not None
    if what == "generator":
        searcher.generator = ScriptedGenerator(world, skill=0.9)
    else:
        search = recipe.search.model_copy(update={"seed": 7})
        recipe = recipe.model_copy(update={"search": search})
    with http_world(searcher) as url:
        with pytest.raises(ValueError, match=f"holds answers with another {what}; .*--fresh"):
            evaluate(recipe, url=url, console=console)
        evaluate(recipe, url=url, fresh=True, console=console)


def test_more_questions_and_candidates_ask_only_what_is_new(recipe, searcher, console):
    assert recipe.evaluation is not None
    few = {"rows": 5, "candidates": (2,), "card_questions": 0}
    fewer = recipe.evaluation.model_copy(update=few)
    more = recipe.evaluation.model_copy(update={"candidates": (1, 2)})
    with http_world(searcher) as url:
        evaluate(recipe.model_copy(update={"evaluation": fewer}), url=url, console=console)
        asked = len(searcher.asked)
        assert report_of(recipe)["greedy"]["questions"] == 5
        evaluate(recipe.model_copy(update={"evaluation": more}), url=url, console=console)
    assert len(searcher.asked) == (METHODS + 3) * ROWS
    assert asked == METHODS * 5
    assert report_of(recipe)["greedy"]["questions"] == ROWS
    assert set(report_of(recipe)["stage_beam"]) == {"1", "2"}


def test_a_killed_evaluation_goes_on_where_it_stopped(recipe_file, searcher, world):
    command = [sys.executable, "-m", "jobs.evaluate", str(recipe_file), "--url"]
    answers = recipe_file.parent / "out" / "answers.jsonl"
    environment = {**os.environ, "PYTHONPATH": f"platform{os.pathsep}."}

    def finished() -> int:
        return len(answers.read_text().splitlines()) if answers.exists() else 0

    with http_world(searcher) as url:
        searcher.pause = 0.2
        job = subprocess.Popen([*command, url], cwd=ROOT, env=environment)
        deadline = time.monotonic() + 120
        while finished() < ROWS + 5:
            assert job.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        job.send_signal(signal.SIGKILL)
        job.wait()
        searcher.pause = 0.0
        before = finished()
        assert before < METHODS * ROWS
        done = subprocess.run(
            [*command, url], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 0, done.stderr
    assert "greedy 24/24" in done.stdout  # progress in plain lines where there is no terminal
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    times = Counter((row["method"], row["n"], row["id"]) for row in rows)
    assert len(times) == METHODS * ROWS and set(times.values()) == {1}


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_a_report_has_its_judges_card_and_a_command_that_repeats_it(
    recipe, searcher, console, monkeypatch
):
    monkeypatch.setattr(sys, "argv", ["stagebeam"])
    assert recipe.evaluation is not None
    some = recipe.evaluation.model_copy(update={"rows": 8, "methods": ("best_of_n",)})
    recipe = recipe.model_copy(update={"evaluation": some})
    with http_world(searcher) as url:
        page = evaluate(recipe, url=url, console=console)
        first = report_of(recipe)
        before = page.read_bytes()
        assert first["repeat"]["directory"] == str(Path.cwd())
        command = shlex.split(first["repeat"]["command"])
        assert command[:3] == ["stagebeam", "evaluate", str(page.parent / "recipe.yaml")]
        done = CliRunner().invoke(main, command[1:])
    assert done.exit_code == 0, done.output
    assert page.read_bytes() == before
    again = json.loads((page.parent.with_name("out-again") / "report.json").read_text())
    assert first["judge"]["pairs"] > 0 and first["judge"]["kind"] == "scripted-judge"
    assert "was not measured on pairs" not in first["claim"]
    for key in ("greedy", "best_of_n", "judge"):
        assert timeless(again[key]) == timeless(first[key])
    assert again["repeat"]["files"] == first["repeat"]["files"] != []
    assert again["repeat"]["weights"] == first["repeat"]["weights"]


def timeless(told: object) -> object:
    if isinstance(told, dict):
        return {key: timeless(value) for key, value in told.items() if key != "seconds"}
    return told


def test_a_card_that_is_given_is_used_and_one_of_another_judge_is_refused(
    recipe, searcher, tmp_path, console
):
    with http_world(searcher) as url:
        evaluate(recipe, url=url, console=console)
        assert report_of(recipe)["judge"] is None  # no question lies behind those asked
        assert "was not measured on pairs with known answers" in report_of(recipe)["claim"]
        share = {"accuracy": 0.9, "interval": [0.8, 0.95], "pairs": 90, "correct": 81}
        card = {"ties": 0, "swap_consistency": 1, "mean_margin": 1, "first_position_share": 0.5}
        card |= {**share, "by_stage": {}, "kind": "verdict"}
        path = tmp_path / "card.json"
        path.write_text(json.dumps({"judge": card, "fingerprints": {"judge": "another"}}))
        asked = len(searcher.asked)
        with pytest.raises(ValueError, match="the card of the judge another, and scripted-judge"):
            evaluate(recipe, url=url, card=path, fresh=True, console=console)
        assert len(searcher.asked) == asked
        path.write_text(json.dumps(card))
        evaluate(recipe, url=url, card=path, console=console)
    report = report_of(recipe)
    assert report["judge"]["accuracy"] == 0.9
    assert "no gain from search is claimed" not in report["claim"]
    assert str(path) in report["repeat"]["command"]


def test_engines_can_be_asked_in_this_process(tmp_path, tiny_folder, scenes, console):
    engine = {"model": str(tiny_folder)}
    path = write_recipe(
        tmp_path,
        tuple(scenes[:4]),
        search={"temperature": 1.0, "max_new_tokens": 8},
        serve={"generator": engine, "judge": {**engine, "kind": "likelihood"}},
    )
    recipe = load_recipe(path)
    with pytest.raises(ValueError, match="asks no URL"):
        evaluate(recipe, in_process=True, url="http://127.0.0.1:9", console=console)
    evaluate(recipe, in_process=True, console=console)
    report = report_of(recipe)
    for result in (report["greedy"], report["stage_beam"]["2"], report["judge_alone"]):
        assert (result["questions"], result["failed"]) == (4, 0)
    assert report["repeat"]["command"].endswith("--in-process")
    assert report["repeat"]["weights"]["generator"]["folder"] == str(tiny_folder)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "localhost", "http://"])
def test_an_endpoint_that_does_not_answer_is_one_sentence(url, recipe, console):
    with pytest.raises(ValueError, match="does not answer"):
        evaluate(recipe, url=url, console=console)


def test_questions_must_be_scorable_and_told_apart(tmp_path, world):
    def questions(*examples: Example) -> list[Example]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        config = load_recipe(write_recipe(folder, examples)).evaluation
        assert config is not None
        return load_questions(config)

    assert questions(*world.examples[:3]) == list(world.examples[:3])
    with pytest.raises(ValueError, match="scene-1 has no gold answer"):
        questions(world.examples[0], replace(world.examples[1], answer=None))
    with pytest.raises(ValueError, match="scene-0 is multiple choice"):
        questions(replace(world.examples[0], answer="two"))


def test_the_judge_alone_is_served_with_its_own_model_and_settings():
    judge = JudgeConfig(model="judge", kind="likelihood", threads=3)
    config = ServeConfig.model_validate({"generator": {"model": "generator"}, "judge": judge})
    assert alone(config).generator.model == "judge"
    assert alone(config).generator.threads == 3
    assert alone(config).judge == judge


@pytest.mark.slow
def test_without_a_url_the_recipe_and_its_judge_alone_are_served(tmp_path, world, console):
    model, judge = tmp_path / "model", tmp_path / "judge"
    texts = [m.text for e in world.examples for m in e.messages]
    for seed, folder in enumerate((model, judge)):
        build_tiny(folder, [*texts, *wording()], seed)
    engine = {"scaling": {"num_cpus": 0.5}}
    path = write_recipe(
        tmp_path,
        world.examples[:4],
        search={"temperature": 1.0, "max_new_tokens": 24},
        serve={
            "port": 0,
            "generator": {"model": str(model), **engine},
            "judge": {"model": str(judge), "kind": "likelihood", **engine},
        },
    )
    recipe = load_recipe(path)
    evaluate(recipe, console=console)
    report = report_of(recipe)
    assert report["greedy"]["questions"] == report["judge_alone"]["questions"] == 4
    assert report["greedy"]["failed"] == report["judge_alone"]["failed"] == 0
    assert report["fingerprints"]["generator"] != report["fingerprints"]["judge"]
