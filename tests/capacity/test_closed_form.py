"""What is said without a simulation: rounds, bounds, a mean."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest
from example_costs import PASS_S, ROW_S, costs

from stagebeam.capacity.closed_form import bounds, longest_of, mean_latency, pairs_by_round
from stagebeam.search.arena import Arena
from stagebeam.search.settings import Form
from stagebeam.search.tournament import play


class CountingArena:
    """Counts the pairs of each round; the larger index wins."""

    def __init__(self, n: int) -> None:
        self.players = dict.fromkeys(range(n))
        self.rounds: list[int] = []

    async def play_round(self, pairs: list[tuple[int, int]]) -> list[Any]:
        self.rounds.append(len(pairs))
        return [SimpleNamespace(a=a, b=b, winner=max(a, b), margin=float(a - b)) for a, b in pairs]

    def runaway(self, played: list[Any]) -> None:
        return None

    def standing(self, index: int) -> int:
        return index


@pytest.mark.parametrize("form", get_args(Form))
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 16, 17, 31, 65])
def test_rounds_are_those_that_a_tournament_really_plays(form: Form, n: int) -> None:
    arena = CountingArena(n)
    asyncio.run(play(cast(Arena, arena), form, seed=0))
    assert pairs_by_round(form, n) == arena.rounds


def test_the_longest_of_several_is_their_expected_maximum() -> None:
    question = costs(candidates=2, spread=0.5).question
    low, high = question.lengths(4)
    drawn = [max(a, b) for a in range(low, high + 1) for b in range(low, high + 1)]
    assert longest_of(question, 4) == pytest.approx(sum(drawn) / len(drawn))
    assert longest_of(costs(spread=0.0).question, 10) == 10


def test_bounds_of_equal_lengths_are_plain_sums() -> None:
    found = bounds(costs(spread=0.0))
    judged = 4 * (0.02 + 12 * 0.001) + 20 * 0.001
    waited = 0.03 + 4 * (0.006 + 0.005)
    alone = 36 * (PASS_S + 4 * ROW_S) + 0.02
    assert found.unloaded_s == pytest.approx(alone + judged + waited)
    assert 1 / found.generator_per_s == pytest.approx(0.02 + 36 * (PASS_S + 16 * ROW_S) / 4)
    assert 1 / found.judge_per_s == pytest.approx(judged)


def test_rounds_above_the_judges_rows_take_another_reading() -> None:
    one, two = bounds(costs(rows=12)), bounds(costs(rows=11, round_s=0.02))
    assert two.judge_s - one.judge_s == pytest.approx(4 * 0.02)


def test_one_candidate_is_never_judged() -> None:
    found = bounds(costs(candidates=1))
    assert math.isinf(found.judge_per_s)
    assert found.judge_s == 0


def test_the_mean_grows_with_the_rate_and_has_an_end() -> None:
    slow, fast = (mean_latency(costs(), 1, 1, rate) for rate in (0.1, 0.9))
    assert bounds(costs()).unloaded_s < slow < fast
    assert math.isinf(mean_latency(costs(), 1, 1, 1.6))
    assert math.isinf(mean_latency(costs(round_s=0.3), 1, 1, 0.9))
