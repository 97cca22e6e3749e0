"""Public benchmarks within an evaluation, over the platform's own HTTP interface."""

from __future__ import annotations

import base64
import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))

from scripted_grader import MODEL, Grader, grading, review_config
from scripted_server import WorldSearcher, http_world
from scripted_world import ScriptedGenerator, World, example

from jobs.evaluate import evaluate
from stagebeam.data.writing import write_shards
from stagebeam.evaluation.benchmarks import BENCHMARKS
from stagebeam.evaluation.benchmarks.asking import example_of
from stagebeam.recipe import DataConfig, Recipe, load_recipe

pytestmark = pytest.mark.usefixtures("no_key")

SCENES = tuple(example(number) for number in range(6))
ROWS = 9
METHODS = 4  # greedy and three searches at one N
MMSTAR = BENCHMARKS["MMStar"]


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


def figures(folder: Path, name: str = "MMStar") -> dict[str, Any]:
    path = folder / "out" / "benchmarks" / name / "figures.json"
    return dict(json.loads(path.read_text()))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


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


JUDGED = ("MMVet", "LLaVA-Bench", "MathVista")


@pytest.fixture
def judged(tmp_path: Path) -> WorldSearcher:
    """Files of the benchmarks that a judge reviews, and a service that answers them."""
    asked = []
    for shift, name in enumerate(JUDGED):
        rows = []
        for number in range(ROWS):
            scene = example(3 * number + shift)
            rows.append(
                {
                    "index": number,
                    "image": base64.b64encode(scene.images[0].bytes).decode(),
                    "question": f"{number}: {scene.messages[0].text}",
                    "answer": scene.answer,
                    "category": "conv" if number % 2 else "detail",
                    "caption": "Circles.",
                    "gpt4_ans": "There are 2.",
                    "question_type": "free_form",
                    "answer_type": "integer",
                    "answer_option": "",
                    "choices": "",
                }
            )
        with (tmp_path / BENCHMARKS[name].file).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        asked += [example_of(BENCHMARKS[name], row) for row in BENCHMARKS[name].rows(tmp_path)]
    world = World((*SCENES, *asked))
    return WorldSearcher(world, ScriptedGenerator(world))


def scripted(prompt: str) -> str:
    """Of a pair the first is better, whichever it is; of three grades one cannot be read."""
    if "[Answer of assistant 1]" in prompt:
        return "9 6\nThe first one is."
    if prompt.endswith("Final answer:"):
        return "2"
    answer = prompt.rsplit("\nAnswer: ", 1)[1][0]
    return {"1": "0.5", "A": "none at all"}.get(answer, "1.0")


def test_judged_benchmarks_have_their_figures_and_nothing_is_asked_twice(
    tmp_path: Path, judged: WorldSearcher, console: Console
) -> None:
    grader = Grader(scripted)
    with http_world(judged) as url, grading(grader) as judge_url:
        review = review_config(judge_url).model_dump(mode="json")
        recipe = recipe_of(tmp_path, list(JUDGED), review=review)
        evaluate(recipe, url=url, console=console)
        first = {name: figures(tmp_path, name) for name in JUDGED}
        asked = len(judged.asked), len(grader.requests)
        evaluate(recipe, url=url, console=console)
        assert (len(judged.asked), len(grader.requests)) == asked
    assert {name: figures(tmp_path, name) for name in JUDGED} == first
    folder = tmp_path / "out" / "benchmarks"
    assert len(lines(folder / "judge_replies.jsonl")) == len(grader.requests)
    for name, found in first.items():
        reviews = lines(folder / name / "reviews.jsonl")
        assert len(reviews) == METHODS * ROWS and found["review"]["model"] == MODEL
        for method, told in found["methods"].items():
            of_it = [review for review in reviews if review["method"] == method]
            assert told["judge"]["calls"] == sum(len(review["replies"]) for review in of_it)
            assert told["judge"]["unread"] == sum(review["unread"] for review in of_it)
            assert told["unmatched"] == sum(review["outcome"]["said"] is None for review in of_it)
            assert told["failed"] == told["judge"]["failed"] == 0
            if name != "LLaVA-Bench":
                mean = sum(review["outcome"]["score"] for review in of_it) / ROWS
                assert told["figures"]["Overall"]["percent"] == pytest.approx(100 * mean)
    vet, llava = first["MMVet"]["methods"], first["LLaVA-Bench"]["methods"]
    assert any(told["judge"]["unread"] == 5 * told["unmatched"] > 0 for told in vet.values())
    assert all(told["judge"]["calls"] == 2 * ROWS for told in llava.values())
    relative = {key: figure["percent"] for key, figure in llava["greedy"]["figures"].items()}
    assert relative == {"Overall": 100, "conv": 100, "detail": 100}  # the bias cancels
    table = (folder / "LLaVA-Bench" / "figures.md").read_text()
    assert f"Scored by {MODEL} (llava-bench-1)." in table
    assert "| Unmatched | Failed | Judge unread | Judge failed |" in table
    assert "The first one is." in (folder / "LLaVA-Bench" / "reviews.jsonl").read_text()


def test_mathvista_goes_by_its_rule_alone_until_there_is_a_judge(
    tmp_path: Path, judged: WorldSearcher, console: Console
) -> None:
    grader = Grader(scripted)
    with http_world(judged) as url, grading(grader) as judge_url:
        evaluate(recipe_of(tmp_path, ["MathVista"]), url=url, console=console)
        alone, asked = figures(tmp_path, "MathVista"), len(judged.asked)
        assert alone["review"] is None and alone["methods"]["greedy"]["judge"] is None
        review = review_config(judge_url).model_dump(mode="json")
        evaluate(recipe_of(tmp_path, ["MathVista"], review=review), url=url, console=console)
    assert len(judged.asked) == asked
    told = figures(tmp_path, "MathVista")["methods"]["greedy"]
    assert told["judge"]["calls"] == alone["methods"]["greedy"]["unmatched"] > 0
    assert told["unmatched"] == 0
