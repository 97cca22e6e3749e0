"""Rows laid into one sequence: no token twice, and each sees what it would see alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
from numpy.typing import NDArray

from stagebeam.inference.tree import Stretch, Tree, plant, shared_length, stretches

ROWS = [[1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2, 7], [1, 2, 3, 4]]


def test_what_all_rows_begin_with() -> None:
    assert shared_length(ROWS) == 2
    assert shared_length([[1, 2], [1, 2, 3]]) == 2
    assert shared_length([[1, 2]]) == 2
    assert shared_length([[1], [2]]) == 0


def test_a_token_stands_once_for_all_rows_that_lead_to_it() -> None:
    tree = plant(ROWS, 1)
    assert tree.ids == [2, 3, 4, 5, 6, 7]
    assert tree.depth == [1, 2, 3, 3, 4, 2]
    assert tree.paths == [[0, 1, 2], [0, 1, 3, 4], [0, 5], [0, 1, 2]]


def columns(stretch: Stretch) -> NDArray[np.int64]:
    if isinstance(stretch.columns, slice):
        return np.arange(stretch.columns.stop)
    return stretch.columns


def looked_at(tree: Tree, size: int) -> list[list[int]]:
    """Of each token, the columns that it sees."""
    seen: list[list[int]] = []
    for stretch in stretches(tree, size):
        assert stretch.first == len(seen)
        for added in stretch.added:
            assert set(added.tolist()) <= {0.0, float("-inf")}
            seen.append(sorted(columns(stretch)[added == 0].tolist()))
        assert stretch.end == len(seen)
        assert len(columns(stretch)) == len({*columns(stretch).tolist()})
    return seen


@pytest.mark.parametrize("size", [1, 2, 5, 99])
@pytest.mark.parametrize("seed", range(20))
def test_a_token_sees_its_own_row_up_to_itself(seed: int, size: int) -> None:
    luck = random.Random(seed)
    head = [luck.randrange(3) for _ in range(luck.randrange(1, 5))]
    rows = [head + [luck.randrange(3) for _ in range(luck.randrange(1, 8))] for _ in range(9)]
    start = luck.randrange(len(head) + 1)
    tree = plant(rows, start)
    seen = looked_at(tree, size)
    assert len(seen) == len(tree.ids)
    for row, path in zip(rows, tree.paths, strict=True):
        assert [tree.ids[place] for place in path] == row[start:]
        assert [tree.depth[place] for place in path] == list(range(start, len(row)))
        for length, place in enumerate(path, 1):
            assert seen[place] == [*range(start), *(start + at for at in path[:length])]
    stems = {tuple(row[:end]) for row in rows for end in range(start + 1, len(row) + 1)}
    assert len(tree.ids) == len(stems)


def test_a_stretch_looks_at_no_more_than_leads_to_it() -> None:
    """However many rows there are: the columns of one row, and itself."""
    rows = [[1, 2, *([row] * 8)] for row in range(3, 30)]
    widths = [len(columns(stretch)) for stretch in stretches(plant(rows, 1), 4)]
    assert len(widths) == 55 and max(widths) < 10 + 4


def test_what_all_rows_begin_with_lies_first() -> None:
    """So that it can be cut off and kept."""
    tree = plant(ROWS, 0)
    assert tree.ids[: shared_length(ROWS)] == [1, 2]
