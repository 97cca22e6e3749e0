import numpy as np
import pytest

from stagebeam.evaluation.statistics import bootstrap_share, paired_difference, wilson


def vectors(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    return (
        [True] * both + [True] * first + [False] * second + [False] * neither,
        [True] * both + [False] * first + [True] * second + [False] * neither,
    )


@pytest.mark.parametrize(
    "correct, total, low, high",
    [  # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(correct, total, low, high):
    assert wilson(correct, total) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("correct, total", [(0, 0), (3, 2), (-1, 4)])
def test_what_is_no_proportion_is_refused(correct, total):
    with pytest.raises(ValueError, match="is not a proportion"):
        wilson(correct, total)


@pytest.mark.parametrize(
    "cells, low, high",
    [  # Newcombe, Statistics in Medicine 17 (1998) 2635, table III, method 10
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((20, 12, 2, 16), 0.0562, 0.3292),
        ((18, 12, 2, 18), 0.0562, 0.3290),
        ((18, 14, 0, 18), 0.1441, 0.3963),
        ((2, 97, 1, 0), 0.8721, 0.9854),
        ((54, 0, 0, 0), -0.0664, 0.0664),
    ],
)
def test_paired_difference_gives_the_published_intervals(cells, low, high):
    found = paired_difference(*vectors(*cells))
    assert found.difference == pytest.approx((cells[1] - cells[2]) / sum(cells))
    assert found.interval == pytest.approx((low, high), abs=5e-5)


def test_p_is_the_exact_two_sided_binomial_of_the_discordant_questions():
    found = paired_difference(*vectors(100, 9, 1, 50))
    assert found.p == pytest.approx(2 * (1 + 10) / 2**10)
    assert (found.only_first, found.only_second, found.questions) == (9, 1, 160)


def test_the_difference_is_the_firsts_gain_and_turns_with_the_order():
    first, second = vectors(10, 6, 1, 5)
    one, other = paired_difference(first, second), paired_difference(second, first)
    assert one.difference == pytest.approx(5 / 22)
    assert other.difference == pytest.approx(-one.difference)
    assert other.interval == pytest.approx((-one.interval[1], -one.interval[0]))
    assert other.p == pytest.approx(one.p)


def test_methods_that_never_differ_have_no_difference_but_an_honest_width():
    found = paired_difference([True] * 50, [True] * 50)
    assert found.difference == 0 and found.p == 1
    assert found.interval[0] < -0.05 and found.interval[1] > 0.05


@pytest.mark.parametrize("first, second", [([], []), ([True], [True, False])])
def test_other_questions_cannot_be_paired(first, second):
    with pytest.raises(ValueError, match="needs the same questions"):
        paired_difference(first, second)


def test_the_bootstrap_of_a_share_is_that_of_drawing_its_questions_anew():
    rng = np.random.default_rng(3)
    answers = np.array([1] * 70 + [0] * 30)
    drawn = [answers[rng.integers(100, size=100)].mean() for _ in range(4000)]
    low, high = bootstrap_share(70, 100)
    assert low == pytest.approx(np.quantile(drawn, 0.025), abs=0.011)
    assert high == pytest.approx(np.quantile(drawn, 0.975), abs=0.011)
    assert bootstrap_share(5, 5) == (1, 1)
    with pytest.raises(ValueError, match="at least one question"):
        bootstrap_share(0, 0)


def test_the_bootstrap_of_a_difference_keeps_questions_paired():
    first, second = [True] * 80 + [False] * 20, [True] * 60 + [False] * 40
    low, high = paired_difference(first, second).bootstrap
    assert low == pytest.approx(0.2 - 1.96 * 0.04, abs=0.011)  # 20 of 100 differ, all one way
    assert high == pytest.approx(0.2 + 1.96 * 0.04, abs=0.011)
    assert paired_difference(first, first).bootstrap == (0, 0)
