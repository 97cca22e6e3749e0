"""Hours of an epoch: what is computed, waited for and moved."""

from __future__ import annotations

import pytest
from example_costs import costs

from stagebeam.capacity.costs import TrainingCosts
from stagebeam.capacity.epochs import epoch, micro_step


def training(**changes: float) -> TrainingCosts:
    found = costs().training
    assert found is not None
    return TrainingCosts.model_validate({**found.model_dump(), **changes})


def test_a_micro_steps_parts_are_plain_arithmetic() -> None:
    step = micro_step(training(), 16)
    assert step.compute_s == pytest.approx(4 * 1e13 / (100e12 * 0.5))
    assert step.rows_s == pytest.approx(4 * 0.01 / (8 * 0.5))
    # 2 GB, three times: 15/16 over the node's 100 GB/s, or half of it over 8 x 10 GB/s
    assert step.traffic_s == pytest.approx(3 * 2 * max(15 / 16 / 100, 0.5 / 80))


def test_one_gpu_moves_nothing() -> None:
    assert micro_step(training(), 1).traffic_s == 0


def test_more_gpus_take_fewer_steps_and_never_more_hours() -> None:
    found = [epoch(training(), 100_000, gpus) for gpus in (8, 16, 64, 512)]
    assert [each.steps for each in found] == [3125, 1563, 391, 49]
    assert [each.hours for each in found] == sorted((e.hours for e in found), reverse=True)
    assert all(each.hours <= each.hours_in_turn for each in found)


def test_hours_go_with_rows_and_the_longest_part_is_named() -> None:
    once, ten = (epoch(training(), rows, 8).hours for rows in (100_000, 1_000_000))
    assert ten == pytest.approx(10 * once, rel=1e-3)
    assert epoch(training(), 100, 8).longest == "compute"
    assert epoch(training(cores_a_gpu=0.01), 100, 8).longest == "rows"
    assert epoch(training(network_gb_s=0.01), 100, 512).longest == "traffic"


def test_nothing_to_read_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        epoch(training(), 0, 8)
