"""Rows that begin alike, laid into one sequence in which no token stands twice: a tree. Its mask
lets a token see the tokens that lead to it, so that one pass reads every row as if it were alone.

Shapes: T tokens of the tree, C rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Tree:
    """Tokens from `start` on; those before are the same in all rows and lie elsewhere."""

    start: int
    ids: list[int]  # [T]
    depth: list[int]  # [T] a token's place in its row
    sees: NDArray[np.bool_]  # [T, T]
    paths: list[list[int]]  # of each row, where its tokens from `start` on lie


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with."""
    first, *others = rows
    length = min(map(len, rows))
    for row in others:
        length = next((i for i in range(length) if row[i] != first[i]), length)
    return length


def plant(rows: Sequence[Sequence[int]], start: int) -> Tree:
    """The tree of rows that agree up to `start` and go on behind it."""
    assert start < min(map(len, rows)) and start <= shared_length(rows)
    places: dict[tuple[int, int], int] = {}  # by parent and token
    ids: list[int] = []
    depth: list[int] = []
    parents: list[int] = []
    paths = []
    for row in rows:
        parent, path = -1, []
        for at in range(start, len(row)):
            place = places.get((parent, row[at]))
            if place is None:
                place = places[parent, row[at]] = len(ids)
                ids.append(row[at])
                depth.append(at)
                parents.append(parent)
            path.append(place)
            parent = place
        paths.append(path)
    sees = np.zeros((len(ids), len(ids)), np.bool_)
    for place, parent in enumerate(parents):
        if parent >= 0:
            sees[place, : parent + 1] = sees[parent, : parent + 1]
        sees[place, place] = True
    return Tree(start, ids, depth, sees, paths)
