"""The annotate job as a process: killed, interrupted, stopped at its limit, run dry."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).parents[1] / "data"))
sys.path.append(str(Path(__file__).parents[1] / "evaluation"))

from scripted_server import MODEL_NAME, WorldSearcher, http_world
from scripted_world import ScriptedGenerator, World, example
from teacher import MODEL, Teacher, serving, write_questions

from jobs.annotate import main
from stagebeam.data.shards import iter_examples
from stagebeam.data.writing import write_shards
from stagebeam.recipe import DataConfig, load_recipe
from stagebeam.stages import conclusion

ROOT = Path(__file__).parents[2]
ROWS = 40
SHIPPED = ROOT / "jobs" / "recipes" / "annotate.yaml"


def write_recipe(folder: Path, url: str, rows: int = ROWS, **changes: Any) -> Path:
    questions = write_questions(folder, ["how many"] * rows)
    teacher = {"base_url": url, "model": MODEL, "concurrency": 4, "retry_wait_s": 0.05}
    annotate = {
        "output_dir": str(folder / "out"),
        "sources": [
            {
                "kind": "llava_cot",
                "annotations": str(questions),
                "image_root": str(folder / "img"),
            }
        ],
        "teacher": teacher | changes.pop("teacher", {}),
    }
    path = folder / "recipe.yaml"
    recipe = {"name": "a", "model": {"path": "m"}, "data": {"shards": str(folder / "shards")}}
    path.write_text(yaml.safe_dump({**recipe, "annotate": {**annotate, **changes}}))
    return path


def started(recipe: Path) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}"}
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.annotate", str(recipe)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def signalled(recipe: Path, teacher: Teacher, requests: int, number: int) -> tuple[int, str]:
    """Run until the teacher has so many requests, then send the signal; exit code and stderr."""
    process = started(recipe)
    while len(teacher.requests) < requests and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def called(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, arguments)


def ids(out: Path) -> Counter[str]:
    files = [out / "annotations.jsonl", out / "refused.jsonl"]
    return Counter(json.loads(line)["id"] for f in files for line in f.read_text().splitlines())


def test_killed_again_and_again_it_pays_for_nothing_twice(tmp_path: Path) -> None:
    teacher = Teacher(fault_share=0.2, pause_s=0.03)
    out = tmp_path / "out"
    with serving(teacher) as url:
        recipe = write_recipe(tmp_path, url)
        for requests in (1, 33, 70):
            code, _ = signalled(recipe, teacher, requests, signal.SIGKILL)
            assert code == -signal.SIGKILL
            assert not (out / "annotations.jsonl").exists()
        process = started(recipe)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors

    assert ids(out) == Counter(f"row-{n}" for n in range(ROWS))
    report = json.loads((out / "report.json").read_text())
    assert report["complete"] and report["annotated"] >= ROWS - 4
    replied = [
        line["call"]
        for line in map(json.loads, (out / "calls.jsonl").read_text().splitlines())
        if "replied" in line
    ]
    assert len(replied) == len(set(replied)) == report["replies"]
    # Answered more than once: only what was in flight at a kill, and that is counted and said.
    twice = sum(times - 1 for times in teacher.answered.values())
    assert twice <= report["killed"] <= 3 * 4
    # A kill may come between the note of a request and its first byte.
    assert 0 <= report["requests"] - len(teacher.requests) <= report["killed"]


def test_an_interrupt_keeps_what_is_finished_and_says_how_to_go_on(tmp_path: Path) -> None:
    teacher = Teacher(pause_s=0.03)
    with serving(teacher) as url:
        recipe = write_recipe(tmp_path, url)
        code, errors = signalled(recipe, teacher, 30, signal.SIGINT)
        assert code == 3, errors
        assert "SIGINT was received" in errors and "run the same command to go on" in errors
        some = ids(tmp_path / "out")
        assert 5 < len(some) < ROWS and max(some.values()) == 1
        assert max(teacher.answered.values()) == 1
        assert called(str(recipe)).exit_code == 0
    assert ids(tmp_path / "out") == Counter(f"row-{n}" for n in range(ROWS))
    assert max(teacher.answered.values()) == 1  # calls in flight were waited for


def test_the_spending_limit_is_exit_code_3_and_one_sentence(tmp_path: Path) -> None:
    teacher = Teacher()
    with serving(teacher) as url:
        prices = {"price_in": 1.0, "price_out": 1.0, "max_tokens": 100}
        recipe = write_recipe(tmp_path, url, teacher=prices, spend_limit=0.01)
        result = called(str(recipe))
    assert result.exit_code == 3
    assert "spending limit" in result.stderr.splitlines()[-1]
    assert "of 40 rows are done" in result.stderr.splitlines()[-1]


def test_a_dry_run_shows_prompts_and_cost_and_asks_nothing(tmp_path: Path) -> None:
    teacher = Teacher()
    with serving(teacher) as url:
        prices = {"price_in": 2.0, "price_out": 8.0, "max_tokens": 1000}
        recipe = write_recipe(tmp_path, url, teacher=prices)
        result = called(str(recipe), "--dry-run", "--limit", "10")
    assert result.exit_code == 0, result.output
    assert "Row 0.0: how many?" in result.output and "Yes or No" in result.output
    assert "10 rows, 20 calls" in " ".join(result.output.split())
    assert "at most 10160 out" in " ".join(result.output.split())
    assert not teacher.requests and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sources": []}, "kind staged reads either sources or shards"),
        ({"kind": "detail"}, "kind detail reads captions and nothing else"),
        ({"spend_limit": 1.0}, "spend_limit needs price_in and price_out"),
        ({"prompt": "cot_v7"}, "There is no prompt cot_v7"),
        ({"prompt": "llava_detail_v1"}, "is for kind detail, not staged"),
        ({"sources": [], "shards": "nowhere"}, "There are no prepared shards in nowhere"),
    ],
)
def test_a_users_mistake_writes_nothing(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    recipe = write_recipe(tmp_path, "http://127.0.0.1:9/v1", rows=2, **changes)
    result = called(str(recipe))
    assert result.exit_code == 2 and says in result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_the_platforms_own_gateway_teaches_from_shards(tmp_path: Path) -> None:
    """Its trained model answers the bare questions; what another model finds right is kept."""
    world = World(tuple(example(number) for number in range(12)))
    write_shards(world.examples, tmp_path / "gold", DataConfig(shards=tmp_path / "gold"))
    searcher = WorldSearcher(world, ScriptedGenerator(world, skill=0.8))
    checker = Teacher()
    with http_world(searcher) as url, serving(checker) as checker_url:
        recipe = write_recipe(
            tmp_path,
            f"{url}/v1",
            sources=[],
            shards=str(tmp_path / "gold"),
            prompt="cot_self_v1",
            teacher={"model": MODEL_NAME},
            checker={"base_url": checker_url, "model": MODEL},
        )
        result = called(str(recipe))
    assert result.exit_code == 0, result.output
    gold = {e.id: e.answer for e in iter_examples(tmp_path / "gold")}
    lines = (tmp_path / "out" / "annotations.jsonl").read_text().splitlines()
    assert len(lines) >= 8
    for row in map(json.loads, lines):
        assert conclusion(row["conversations"][1]["value"]) == gold[row["id"]]


def test_the_shipped_recipe_prepares_what_it_annotates() -> None:
    recipe = load_recipe(SHIPPED)
    assert recipe.annotate is not None
    (source,) = recipe.data.sources
    assert source.kind == "llava_cot"
    assert source.annotations == recipe.annotate.output_dir / "annotations.jsonl"
    assert source.image_root == recipe.annotate.output_dir / "images"
