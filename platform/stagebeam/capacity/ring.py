"""Which replica a question falls on: Serve's hash ring gives replicas unequal shares."""

from __future__ import annotations

import numpy as np

# Points of a replica on the ring: Ray 2.60's consistent hash router.
POINTS = 100


def ring_shares(replicas: int, rng: np.random.Generator) -> np.ndarray:
    """The share of the questions that each replica gets, [replicas], of one ring drawn at random.

    With 100 points each, a share lies about a tenth above or below its fair one.
    """
    places = rng.random(replicas * POINTS)
    order = np.argsort(places)
    owners = np.repeat(np.arange(replicas), POINTS)[order]
    ordered = places[order]
    arcs = np.diff(ordered, prepend=ordered[-1] - 1.0)  # a point owns what lies before it
    shares: np.ndarray = np.bincount(owners, weights=arcs, minlength=replicas)
    return shares
