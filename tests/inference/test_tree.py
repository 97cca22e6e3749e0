"""Rows laid into one sequence: no token twice, and each sees what it would see alone."""

from __future__ import annotations

import random

import pytest

from stagebeam.inference.tree import plant, shared_length

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


@pytest.mark.parametrize("seed", range(20))
def test_a_token_sees_its_own_row_up_to_itself(seed: int) -> None:
    luck = random.Random(seed)
    head = [luck.randrange(3) for _ in range(luck.randrange(1, 5))]
    rows = [head + [luck.randrange(3) for _ in range(luck.randrange(1, 8))] for _ in range(9)]
    start = luck.randrange(len(head) + 1)
    tree = plant(rows, start)
    for row, path in zip(rows, tree.paths, strict=True):
        assert [tree.ids[place] for place in path] == row[start:]
        assert [tree.depth[place] for place in path] == list(range(start, len(row)))
        for length, place in enumerate(path, 1):
            assert set(tree.sees[place].nonzero()[0]) == set(path[:length])
    stems = {tuple(row[:end]) for row in rows for end in range(start + 1, len(row) + 1)}
    assert len(tree.ids) == len(stems)


def test_what_all_rows_begin_with_lies_first() -> None:
    """So that it can be cut off and kept."""
    tree = plant(ROWS, 0)
    assert tree.ids[: shared_length(ROWS)] == [1, 2]
