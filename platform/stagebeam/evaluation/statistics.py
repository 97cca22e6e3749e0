"""Intervals and tests for accuracies: of one method, and of two on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy.stats import binom, binomtest

_DRAWS, _SEED = 10_000, 0

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Accuracy of the first method less that of the second, on the same questions."""

    difference: float
    interval: Interval  # 95 %
    p: float  # exact McNemar, two-sided
    questions: int
    only_first: int  # questions that the first alone has right
    only_second: int
    bootstrap: Interval  # 95 %


def wilson(correct: int, total: int) -> Interval:
    """The 95 % score interval of a proportion (Wilson 1927).

    Raises ValueError if `total` is not positive or `correct` is not within it.
    """
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"{correct} of {total} is not a proportion.")
    interval = binomtest(correct, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_share(correct: int, total: int) -> Interval:
    """The 95 % percentile bootstrap of a proportion, over its questions.

    Questions drawn anew from right and wrong ones are a binomial sample, so that the quantiles are
    exact and nothing is drawn. It has no width where all or none are right, unlike `wilson`.
    Raises ValueError if there is no question.
    """
    if total <= 0:
        raise ValueError("A bootstrap needs at least one question.")
    low, high = binom.ppf((0.025, 0.975), total, correct / total) / total
    return float(low), float(high)


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> PairedDifference:
    """Compare two methods, question by question.

    The interval is Newcombe's for paired proportions (Statistics in Medicine 17, 1998, method 10):
    it keeps a sensible width where the methods hardly ever differ, unlike the normal one. The p
    value is McNemar's exact test: the discordant questions as tosses of a fair coin.

    Raises ValueError if the two do not have the same positive number of questions.
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"A paired comparison needs the same questions: got {len(first)} and {len(second)}."
        )
    both = sum(a and b for a, b in zip(first, second, strict=True))
    only_first, only_second = sum(first) - both, sum(second) - both
    discordant = only_first + only_second
    return PairedDifference(
        difference=(only_first - only_second) / len(first),
        interval=_newcombe(both, only_first, only_second, len(first)),
        p=float(binomtest(only_first, discordant).pvalue) if discordant else 1.0,
        questions=len(first),
        only_first=only_first,
        only_second=only_second,
        bootstrap=_bootstrap(only_first, only_second, len(first)),
    )


def _bootstrap(only_first: int, only_second: int, n: int) -> Interval:
    """Of the difference, over questions: the same draw serves both methods."""
    shares = (only_first / n, only_second / n, 1 - (only_first + only_second) / n)
    drawn = np.random.default_rng(_SEED).multinomial(n, shares, size=_DRAWS)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, (0.025, 0.975))
    return float(low), float(high)


def _newcombe(both: int, only_first: int, only_second: int, n: int) -> Interval:
    right1, right2 = both + only_first, both + only_second
    neither = n - both - only_first - only_second
    p1, p2 = right1 / n, right2 / n
    (low1, high1), (low2, high2) = wilson(right1, n), wilson(right2, n)
    product = right1 * (n - right1) * right2 * (n - right2)
    covariance: float = both * neither - only_first * only_second
    if covariance > 0:
        covariance = max(covariance - n / 2, 0)  # the method's continuity correction
    phi = covariance / sqrt(product) if product else 0.0

    def combine(x: float, y: float) -> float:
        return sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    difference = p1 - p2
    return (
        difference - combine(p1 - low1, high2 - p2),
        difference + combine(high1 - p1, p2 - low2),
    )
