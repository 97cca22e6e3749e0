"""The rate of each step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stagebeam.train_config import TrainConfig
from stagebeam.training.loop import learning_rate

PEAK = 0.01


def rates(steps: int, steps_per_epoch: int = 5, **changes: Any) -> list[float]:
    config = TrainConfig(output_dir=Path("unused"), learning_rate=PEAK, **changes)
    return [learning_rate(config, step, steps, step // steps_per_epoch) for step in range(steps)]


def test_constant_stays() -> None:
    assert rates(10, schedule="constant") == [PEAK] * 10


def test_step_decays_once_an_epoch() -> None:
    expected = [PEAK] * 4 + [PEAK * 0.85] * 4 + [PEAK * 0.85**2] * 4
    assert rates(12, 4, schedule="step", step_decay=0.85) == pytest.approx(expected)


def test_cosine_falls_from_the_peak_to_a_twentieth() -> None:
    found = rates(1000, schedule="cosine")
    assert found[0] == PEAK
    assert found == sorted(found, reverse=True)
    assert found[500] == pytest.approx(PEAK * (0.05 + 0.95 / 2))
    assert found[-1] == pytest.approx(PEAK * 0.05, rel=1e-3)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_warm_up_rises_in_equal_steps_to_the_peak(schedule: str) -> None:
    found = rates(100, 50, schedule=schedule, warmup_steps=4)
    assert found[:5] == pytest.approx([PEAK / 4, PEAK / 2, PEAK * 3 / 4, PEAK, PEAK])
    assert max(found) == pytest.approx(PEAK)


def test_a_run_shorter_than_its_warm_up_only_rises() -> None:
    assert rates(2, schedule="cosine", warmup_steps=4) == pytest.approx([PEAK / 4, PEAK / 2])
