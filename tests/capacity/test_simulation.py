"""The simulation keeps count, agrees with closed forms, and knows more from less."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
from example_costs import costs

from stagebeam.capacity.closed_form import bounds, mean_latency
from stagebeam.capacity.costs import Costs
from stagebeam.capacity.ring import ring_shares
from stagebeam.capacity.simulation import Fleet, Load, Outcome, over_rings, simulate

EVEN = {1: [1.0], 2: [0.5, 0.5], 3: [1 / 3] * 3}


def saturated(of: Costs, generators: int, clients: int = 12, judges: int = 1) -> Outcome:
    return simulate(
        of,
        Fleet(generators, judges),
        Load(clients=clients * generators),
        seconds=300,
        warm_up_s=60,
        seed=0,
        shares=EVEN[generators],
    )


def at_rate(of: Costs, rate: float, generators: int = 1, judges: int = 1, seed: int = 0) -> Outcome:
    fleet = Fleet(generators, judges)
    return simulate(of, fleet, Load(rate=rate), seconds=2000, warm_up_s=50, seed=seed)


@pytest.mark.parametrize("most", [None, 3, 40])
@pytest.mark.parametrize("rate", [0.5, 5.0])
def test_every_question_is_answered_refused_or_still_there(most: int | None, rate: float) -> None:
    load = Load(rate=rate)
    seen = simulate(costs(), Fleet(2, 1, most), load, seconds=200, warm_up_s=10, seed=1)
    assert seen.arrived == seen.answered + seen.refused + seen.left
    assert seen.arrived == pytest.approx(rate * 210, rel=0.25)
    assert (seen.refused > 0) == (most is not None and rate > 4)
    if most is not None:
        assert seen.left <= 2 * most
        assert seen.at_once <= 2 * most


def test_the_same_seed_is_the_same_outcome_and_another_is_not() -> None:
    first, again, other = (at_rate(costs(), 0.7, seed=seed) for seed in (3, 3, 4))
    assert asdict(first) == asdict(again)
    assert first.mean_s != other.mean_s


def test_a_question_alone_takes_what_the_closed_form_says() -> None:
    one = Load(clients=1)
    for spread, close in ((0.0, 1e-9), (0.5, 0.01)):
        of = costs(spread=spread)
        seen = simulate(of, Fleet(1, 1), one, seconds=1000, warm_up_s=0, seed=0)
        assert seen.mean_s == pytest.approx(bounds(of).unloaded_s, rel=close)
        assert seen.at_once == pytest.approx(1)


def test_saturated_with_equal_lengths_every_row_is_full_and_the_bound_is_reached() -> None:
    even = costs(spread=0.0, prompt_tokens=0)
    seen = saturated(even, 1)
    assert seen.rows == pytest.approx(16, rel=0.01)
    assert seen.answers_per_s == pytest.approx(bounds(even).generator_per_s, rel=0.03)


def test_saturated_with_unequal_lengths_the_bound_is_close_and_never_passed() -> None:
    bound = bounds(costs()).generator_per_s
    seen = saturated(costs(), 1)
    assert 0.9 * bound < seen.answers_per_s <= bound
    assert seen.generators_busy == pytest.approx(1, abs=0.01)


def test_a_slow_judge_sets_the_pace() -> None:
    slow = costs(round_s=0.4)
    seen = saturated(slow, 1)
    assert seen.answers_per_s == pytest.approx(bounds(slow).judge_per_s, rel=0.03)
    assert seen.judges_busy == pytest.approx(1, abs=0.02)


def test_at_light_load_the_mean_is_that_of_the_closed_form() -> None:
    for rate in (0.1, 0.3):
        assert at_rate(costs(), rate).mean_s == pytest.approx(
            mean_latency(costs(), 1, 1, rate), rel=0.03
        )


def test_questions_at_once_follow_littles_law() -> None:
    seen = at_rate(costs(), 0.8)
    assert seen.at_once == pytest.approx(seen.answers_per_s * seen.mean_s, rel=0.02)


def test_more_replicas_are_never_slower() -> None:
    closed = [saturated(costs(), generators).answers_per_s for generators in (1, 2, 3)]
    assert closed[1] == pytest.approx(2 * closed[0], rel=0.08)
    assert closed[2] == pytest.approx(3 * closed[0], rel=0.12)
    means = [at_rate(costs(), 0.9, generators).mean_s for generators in (1, 2, 3)]
    assert means == sorted(means, reverse=True)
    judged = [saturated(costs(round_s=0.4), 1, judges=judges).answers_per_s for judges in (1, 2)]
    assert judged[1] > 1.1 * judged[0]


def test_more_candidates_and_more_stages_are_never_faster() -> None:
    by_n = [at_rate(costs(candidates=n), 0.3).mean_s for n in (1, 2, 4, 8)]
    assert by_n == sorted(by_n)
    by_stages = [at_rate(costs(tokens=(8,) * stages), 0.3).mean_s for stages in (1, 2, 3, 4)]
    assert by_stages == sorted(by_stages)
    full = [saturated(costs(candidates=n), 1).answers_per_s for n in (1, 2, 4, 8)]
    assert full == sorted(full, reverse=True)


def test_a_ring_shares_questions_out_unevenly_and_wholly() -> None:
    shares = np.array([ring_shares(3, np.random.default_rng(seed)) for seed in range(200)])
    assert shares.sum(axis=1) == pytest.approx(np.ones(200))
    assert shares.mean() == pytest.approx(1 / 3)
    assert 0.02 < shares.std() < 0.04  # about a tenth of a third


def test_an_uneven_ring_costs_throughput() -> None:
    load = Load(clients=36)

    def of(shares: list[float]) -> float:
        fleet = Fleet(3, 1)
        seen = simulate(costs(), fleet, load, seconds=300, warm_up_s=60, seed=0, shares=shares)
        return seen.answers_per_s

    assert of([0.5, 0.25, 0.25]) < 0.85 * of(EVEN[3])


def test_a_full_replica_passes_calls_on() -> None:
    load = Load(clients=160)  # more than one takes in, 4 calls a row
    seen = simulate(
        costs(rows=4), Fleet(2, 1), load, seconds=100, warm_up_s=10, seed=0, shares=[1.0, 0.0]
    )
    assert seen.generators_busy > 0.9


def test_questions_come_when_they_are_due() -> None:
    of = costs(spread=0.0)
    load = Load(due=[0.0, 50.0, 100.0])
    seen = simulate(of, Fleet(1, 1), load, seconds=200, warm_up_s=0, seed=0)
    assert (seen.arrived, seen.answered) == (3, 3)
    assert seen.p99_s == pytest.approx(bounds(of).unloaded_s)
    working = 36 * (0.04 + 4 * 0.002) + 0.02
    assert seen.generators_busy == pytest.approx(3 * working / 200)
    assert seen.judges_busy == pytest.approx(3 * bounds(of).judge_s / 200)
    assert seen.rows == pytest.approx(4, rel=0.02)


def test_what_is_under_way_at_the_edges_of_the_time_counts_by_its_part() -> None:
    of = costs(spread=0.0, tokens=(1000,), candidates=1, prompt_tokens=0)
    seen = simulate(of, Fleet(1, 1), Load(due=[0.0]), seconds=10, warm_up_s=10, seed=0)
    assert seen.generators_busy == pytest.approx(1)
    assert seen.rows == pytest.approx(1)


def test_the_mean_of_runs_is_field_by_field() -> None:
    runs = [at_rate(costs(), 0.5, seed=seed) for seed in range(3)]
    mean = over_rings(runs)
    assert mean.p50_s == pytest.approx(sum(run.p50_s for run in runs) / 3)
    assert isinstance(mean.arrived, int)


def test_where_nobody_was_answered_there_are_no_seconds() -> None:
    seen = simulate(costs(), Fleet(1, 1), Load(rate=1.0), seconds=0.5, warm_up_s=0, seed=0)
    assert seen.answers_per_s == 0
    assert math.isnan(seen.p95_s)


@pytest.mark.parametrize(
    ("fleet", "load", "seconds", "said"),
    [
        (Fleet(0, 1), Load(rate=1), 1.0, "needs a generator and a judge"),
        (Fleet(1, 1), Load(rate=1), 0.0, "needs time"),
        (Fleet(1, 1), Load(), 1.0, "a rate, clients or times"),
        (Fleet(1, 1), Load(rate=1, clients=1), 1.0, "a rate, clients or times"),
        (Fleet(1, 1), Load(rate=0), 1.0, "a rate, clients or times"),
        (Fleet(1, 1), Load(due=[]), 1.0, "a rate, clients or times"),
    ],
)
def test_what_cannot_be_simulated_is_refused_in_a_sentence(
    fleet: Fleet, load: Load, seconds: float, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        simulate(costs(), fleet, load, seconds=seconds, warm_up_s=0, seed=0)
