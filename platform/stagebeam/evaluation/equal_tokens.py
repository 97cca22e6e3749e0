"""Which points of two methods may be set side by side, where an answer of each has its price.

N is no common measure: at the same N methods sample and judge differently. So a method is held
against points that were given at least as much. Nothing is interpolated: between two values of N
nothing was measured.
"""

from __future__ import annotations

from collections.abc import Mapping


def rivals(tokens: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """For each method at each N and each other method: that other's N to compare it with.

    `tokens` are means for an answer, by names such as `stage_beam@4`. The N is the one that costs
    least among those that cost no less; where all cost less, the dearest. Returned as the first
    name, the other method, and that method's name with its N.
    """
    by_method: dict[str, list[str]] = {}
    for name in tokens:
        by_method.setdefault(name.partition("@")[0], []).append(name)
    return [
        (first, method, _rival(tokens[first], points, tokens))
        for first in tokens
        for method, points in by_method.items()
        if method != first.partition("@")[0]
    ]


def _rival(price: float, points: list[str], tokens: Mapping[str, float]) -> str:
    dear_enough = [point for point in points if tokens[point] >= price]
    if dear_enough:
        return min(dear_enough, key=tokens.__getitem__)
    return max(points, key=tokens.__getitem__)
