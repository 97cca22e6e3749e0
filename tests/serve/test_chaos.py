"""Replicas that die while questions are asked cost time, and neither an answer nor its text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bad_requests import body
from real_models import question, write_model
from scripted_app import scripted

from jobs.benchmarks.serve_chaos import ChaosFigures, chaos
from jobs.benchmarks.serve_load import arrivals
from serve.app import serving
from stagebeam.recipe import Autoscaling, EngineConfig, JudgeConfig, ServeConfig
from stagebeam.search_config import SearchConfig

PAIR = Autoscaling(num_cpus=0.25, min_replicas=2, max_replicas=2)


async def disturbed(log: Path, questions: int, rate: float, every_s: float) -> ChaosFigures:
    bodies = [
        body(f"steady question {number}", search={"include_trace": True, "seed": number})
        for number in range(questions)
    ]
    with scripted(log, generators=PAIR, judges=PAIR, candidates=3) as url:
        figures = await chaos(url, bodies, arrivals(rate, questions, 0), every_s=every_s, seed=0)
    print(figures)
    return figures


def check(figures: ChaosFigures, kills: int) -> None:
    assert figures.kills >= kills, "too little was killed to show anything"
    assert (figures.lost, figures.changed) == (0, 0)


@pytest.mark.timeout(600)
async def test_sixty_questions_while_replicas_are_killed(cluster: None, tmp_path: Path) -> None:
    check(await disturbed(tmp_path, 60, rate=5, every_s=2.0), kills=2)


@pytest.mark.slow
@pytest.mark.timeout(1500)
async def test_a_thousand_questions_while_replicas_are_killed(
    cluster: None, tmp_path: Path
) -> None:
    check(await disturbed(tmp_path, 1000, rate=4, every_s=3.0), kills=30)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_real_model_gives_the_same_answers_while_replicas_are_killed(
    cluster: None, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "tiny")
    config = ServeConfig(
        port=0,
        generator=EngineConfig(model=model, scaling=PAIR),
        judge=JudgeConfig(model=model, scaling=PAIR),
    )
    defaults = SearchConfig(candidates=2, max_new_tokens=24, temperature=1.0)
    bodies: list[dict[str, Any]] = [
        {
            "model": "stagebeam",
            "messages": question(),
            "search": {"include_trace": True, "seed": number},
        }
        for number in range(12)
    ]
    with serving(config, defaults) as url:
        figures = await chaos(url, bodies, arrivals(1, 12, 0), every_s=6.0, seed=0)
    print(figures)
    check(figures, kills=1)
