"""A node is lost while a service is evaluated: the report is the unbroken one's."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import world_engines
from evaluation_runs import (
    CARD,
    ROWS,
    SEARCH,
    TIMES,
    evaluating,
    expect_equal,
    lines,
    to_its_end,
    write_recipe,
)
from job_process import end_of
from ray_nodes import RayCluster
from scripted_world import example
from serving_nodes import joined, loaded_node, spread
from waiting import wait_until

from serve.app import serving
from stagebeam.recipe import Autoscaling, EngineConfig, JudgeConfig, ServeConfig
from stagebeam.search_config import SearchConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PAIR = Autoscaling(num_cpus=0.2, min_replicas=2, max_replicas=2)


def test_the_report_of_an_evaluation_that_lost_a_node_is_the_unbroken_one(
    cluster: RayCluster, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, [example(number) for number in range(ROWS + CARD)])
    engine = {"model": str(ROWS + CARD), "scaling": PAIR}
    config = ServeConfig(port=0, generator=EngineConfig(**engine), judge=JudgeConfig(**engine))
    with (
        joined(cluster),
        serving(
            config,
            SearchConfig(**SEARCH),
            generator_loader=world_engines.load_generator,
            judge_loader=world_engines.load_judge,
        ) as url,
    ):
        print(spread(cluster))
        began = time.monotonic()
        unbroken = to_its_end(recipe, url).rename(tmp_path / "unbroken")
        calm = time.monotonic() - began
        began = time.monotonic()
        with evaluating(recipe, url) as job:
            wait_until(lambda: lines(tmp_path / "out") > lines(unbroken) // 3, every=0.01)
            assert job.poll() is None, "it had ended before it was disturbed"
            cluster.lose(loaded_node(cluster))
            there = lines(tmp_path / "out")
            assert job.wait(900) == 0, end_of(tmp_path / "log")
        disturbed = time.monotonic() - began
        print(spread(cluster))
    print(
        f"evaluate: {lines(unbroken)} answers, {there} of them before a node was lost, "
        f"{disturbed:.0f} s ({calm:.0f} s undisturbed)"
    )
    expect_equal(tmp_path / "out", unbroken, TIMES)
