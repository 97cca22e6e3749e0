"""A whole evaluation that is killed three times says what an unbroken one says."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))
sys.path.append(str(Path(__file__).parents[1] / "serve"))

import world_engines
from evaluation_runs import (
    CACHED,
    CARD,
    ROWS,
    SCALING,
    SEARCH,
    TIMES,
    evaluating,
    expect_equal,
    lines,
    to_its_end,
    write_recipe,
)
from own_cluster import own_cluster
from scripted_world import example

from serve.app import serving
from stagebeam.data.sources.scenes import draw
from stagebeam.inference.wording import wording
from stagebeam.models.tiny.build import build_tiny
from stagebeam.recipe import EngineConfig, JudgeConfig, ServeConfig
from stagebeam.search_config import SearchConfig
from stagebeam.source_config import ScenesSource

ROOT = Path(__file__).parents[2]
KILLS = 3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with own_cluster(ROOT / "tests" / "evaluation"):
        yield


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


def check(recipe: Path, url: str, changing: set[str]) -> dict[str, Any]:
    unbroken = to_its_end(recipe, url).rename(recipe.parent / "unbroken")
    total = lines(unbroken)
    seed = random.randrange(1 << 30)
    print(f"{total} answers, seed of the kills {seed}")
    draw_moments = random.Random(seed)
    for moment in sorted(draw_moments.sample(range(1, total - 8), KILLS)):
        killed_at(recipe, url, moment, pause=draw_moments.uniform(0, 0.02))
    return expect_equal(to_its_end(recipe, url), unbroken, changing)


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
