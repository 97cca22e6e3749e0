"""A fleet that keeps its promise, and what it costs."""

from __future__ import annotations

import pytest
from example_costs import costs

from stagebeam.capacity.closed_form import bounds
from stagebeam.capacity.plan import Plan, looked_at, needed
from stagebeam.capacity.simulation import Fleet

PROMISED_S = 5.0


def planned(per_minute: float, p95_s: float = PROMISED_S) -> Plan:
    return needed(costs(), per_minute, p95_s=p95_s, price=2.0, seed=0)


def test_the_promise_is_kept_and_a_much_smaller_fleet_does_not_keep_it() -> None:
    plan = planned(600)
    assert plan.outcome.p95_s <= PROMISED_S
    assert plan.outcome.answers_per_s == pytest.approx(10, rel=0.05)
    smaller = Fleet(plan.fleet.generators * 3 // 4, plan.fleet.judges)
    assert looked_at(costs(), smaller, 10, 0).p95_s > PROMISED_S


def test_more_questions_need_more_replicas_and_a_looser_promise_fewer() -> None:
    fleets = [planned(rate).fleet.generators for rate in (10, 100, 1000)]
    assert fleets == sorted(fleets)
    assert fleets[0] < fleets[-1]
    assert planned(1000, 20.0).fleet.generators < planned(1000, 3.5).fleet.generators


def test_the_judge_grows_where_it_is_the_narrow_place() -> None:
    plan = needed(costs(round_s=0.5), 300, p95_s=10.0, price=1.0, seed=0)
    assert plan.fleet.judges > plan.fleet.generators


def test_the_price_follows_from_gpus_and_answers() -> None:
    plan = planned(300)
    assert plan.gpus == plan.fleet.generators + plan.fleet.judges
    assert plan.per_hour == plan.gpus * 2.0
    assert plan.per_thousand == pytest.approx(plan.per_hour / (300 * 60) * 1000)


def test_a_promise_below_what_an_answer_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="with nothing else to do"):
        planned(10, bounds(costs()).unloaded_s)
    with pytest.raises(ValueError, match="A rate is above 0"):
        planned(0)
