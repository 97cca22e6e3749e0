"""A whole evaluation that is killed three times says what an unbroken one says."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))
sys.path.append(str(Path(__file__).parents[1] / "serve"))

import world_engines
from own_cluster import own_cluster
from scripted_world import example

from serve.app import serving
from stagebeam.data.sources.scenes import draw
from stagebeam.data.writing import write_shards
from stagebeam.inference.wording import wording
from stagebeam.models.tiny.build import build_tiny
from stagebeam.recipe import Autoscaling, DataConfig, EngineConfig, JudgeConfig, ServeConfig
from stagebeam.records import Example
from stagebeam.search.trace import read_traces
from stagebeam.search_config import SearchConfig
from stagebeam.source_config import ScenesSource

ROOT = Path(__file__).parents[2]
ROWS, CARD, KILLS = 20, 12, 3
SCALING = Autoscaling(num_cpus=0.4)
SEARCH = {"temperature": 1.0, "max_new_tokens": 24}
TIMES = {"created", "seconds", "wandb"}
# What an engine still had in its caches: a service that goes on has more there, and reading a
# prompt that it has takes no pass.
CACHED = {"prefill_tokens", "image_encodes", "cache_hits", "sequential_passes"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with own_cluster(ROOT / "tests" / "evaluation"):
        yield


def write_recipe(folder: Path, examples: list[Example]) -> Path:
    write_shards(examples, folder / "held-out", DataConfig(shards=folder / "held-out"))
    recipe = {
        "name": "killed",
        "model": {"path": "none"},
        "data": {"shards": "none"},
        "search": SEARCH,
        "evaluation": {
            "output_dir": str(folder / "out"),
            "shards": str(folder / "held-out"),
            "rows": ROWS,
            "card_questions": CARD,
            "candidates": [2, 4],
            "concurrency": 4,
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


@contextmanager
def evaluating(recipe: Path, url: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    environment.pop("WANDB_API_KEY", None)
    with (recipe.parent / "log").open("ab") as log:
        job = subprocess.Popen(
            [sys.executable, "-m", "jobs.evaluate", str(recipe), "--url", url],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
        )
        try:
            yield job
        finally:
            if job.poll() is None:
                job.kill()
                job.wait()


def to_its_end(recipe: Path, url: str) -> Path:
    with evaluating(recipe, url) as job:
        assert job.wait(timeout=900) == 0, (recipe.parent / "log").read_text()
    return recipe.parent / "out"


def lines(out: Path) -> int:
    files = (out / "answers.jsonl", out / "card" / "answers.jsonl")
    return sum(file.read_bytes().count(b"\n") for file in files if file.exists())


def killed_at(recipe: Path, url: str, answers: int, pause: float) -> None:
    """SIGKILL some time after so many answers are there."""
    deadline = time.monotonic() + 600
    with evaluating(recipe, url) as job:
        while lines(recipe.parent / "out") < answers:
            assert job.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(pause)
        job.send_signal(signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL, "it had ended before it was killed"


def without(told: Any, keys: set[str]) -> Any:
    if isinstance(told, dict):
        return {key: without(value, keys) for key, value in told.items() if key not in keys}
    return [without(value, keys) for value in told] if isinstance(told, list) else told


def answers(out: Path, keys: set[str]) -> dict[tuple[str, int, str], Any]:
    """Every answer by what it is an answer to, which there must be one of."""
    found = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    asked = Counter((row["method"], row["n"], row["id"]) for row in found)
    assert set(asked.values()) == {1}
    return {(row["method"], row["n"], row["id"]): without(row, keys) for row in found}


def check(recipe: Path, url: str, changing: set[str]) -> dict[str, Any]:
    unbroken = to_its_end(recipe, url).rename(recipe.parent / "unbroken")
    total = lines(unbroken)
    seed = random.randrange(1 << 30)
    print(f"{total} answers, seed of the kills {seed}")
    draw_moments = random.Random(seed)
    for moment in sorted(draw_moments.sample(range(1, total - 8), KILLS)):
        killed_at(recipe, url, moment, pause=draw_moments.uniform(0, 0.02))
    broken = to_its_end(recipe, url)
    assert lines(broken) == total
    ours, theirs = (answers(out, changing) for out in (broken, unbroken))
    assert ours == theirs
    ours, theirs = (
        {trace.id: trace.text for trace in read_traces(out / "traces.jsonl")}
        for out in (broken, unbroken)
    )
    assert ours == theirs
    ours, theirs = (
        without(json.loads((out / "report.json").read_text()), changing)
        for out in (broken, unbroken)
    )
    assert ours == theirs
    return dict(ours)


def test_the_scripted_world_on_real_serve(cluster: None, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, [example(number) for number in range(ROWS + CARD)])
    engine = {"model": str(ROWS + CARD), "scaling": SCALING}
    config = ServeConfig(port=0, generator=EngineConfig(**engine), judge=JudgeConfig(**engine))
    with serving(
        config,
        SearchConfig(**SEARCH),
        generator_loader=world_engines.load_generator,
        judge_loader=world_engines.load_judge,
    ) as url:
        report = check(recipe, url, TIMES)
    assert report["judge"]["pairs"] > 10
    assert 0 < report["greedy"]["accuracy"] < report["oracle"]["4"]["accuracy"]


def test_the_tiny_model_on_drawn_scenes(cluster: None, tmp_path: Path) -> None:
    scenes = list(draw(ScenesSource(rows=ROWS + CARD, split="test")))
    recipe = write_recipe(tmp_path, scenes)
    build_tiny(tmp_path / "tiny", [*wording(), *(m.text for e in scenes for m in e.messages)])
    engine = {"model": str(tmp_path / "tiny"), "scaling": SCALING}
    judge = JudgeConfig(**engine, kind="likelihood")
    config = ServeConfig(port=0, generator=EngineConfig(**engine), judge=judge)
    with serving(config, SearchConfig(**SEARCH)) as url:
        report = check(recipe, url, TIMES | CACHED)
    assert report["stage_beam"]["4"]["failed"] == 0
