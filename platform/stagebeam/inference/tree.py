"""Rows that begin alike, laid into one sequence in which no token stands twice: a tree. A token
sees the tokens that lead to it, so that one pass reads every row as if it were alone.

Rows are laid in order, so each adds its end behind a path that is there, and a token's descendants
follow it without a gap. What lies before a stretch of the tree and is seen from within it is then
the path to its first token: attention is done for one stretch after another, over few columns.

Shapes: T tokens of the tree, C rows; S tokens of a stretch, W columns that they may see.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Branch:
    """Tokens that one row adds, and those of the tree that lead to them."""

    first: int
    end: int
    lead: list[int]


@dataclass(frozen=True, slots=True)
class Tree:
    """Tokens from `start` on; those before are the same in all rows and lie elsewhere."""

    start: int
    ids: list[int]  # [T]
    depth: list[int]  # [T] a token's place in its row
    paths: list[list[int]]  # of each row, where its tokens from `start` on lie
    branches: list[Branch]  # one after another


@dataclass(frozen=True, slots=True)
class Stretch:
    """Tokens `first` to `end` of the tree. Columns count what lies before the tree too."""

    first: int
    end: int
    columns: NDArray[np.int64]  # [W]
    added: NDArray[np.float32]  # [S, W] to the scores: 0 where a token sees, else minus infinity


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with."""
    ordered = sorted(map(list, rows))
    return _alike(ordered[0], ordered[-1])


def plant(rows: Sequence[Sequence[int]], start: int) -> Tree:
    """The tree of rows that agree up to `start` and go on behind it."""
    assert start < min(map(len, rows)) and start <= shared_length(rows)
    ids: list[int] = []
    depth: list[int] = []
    branches = []
    paths: list[list[int]] = [[] for _ in rows]
    before: list[int] = []
    path: list[int] = []
    for row, at in sorted((list(row[start:]), at) for at, row in enumerate(rows)):
        known = _alike(before, row)
        first, end = len(ids), len(ids) + len(row) - known
        lead = path[:known]
        if end > first:
            branches.append(Branch(first, end, lead))
        ids += row[known:]
        depth += range(start + known, start + len(row))
        path = paths[at] = [*lead, *range(first, end)]
        before = row
    return Tree(start, ids, depth, paths, branches)


def stretches(tree: Tree, size: int) -> Iterator[Stretch]:
    """The whole tree, `size` tokens at a time."""
    start = tree.start
    for first in range(0, len(tree.ids), size):
        end = min(first + size, len(tree.ids))
        within = [b for b in tree.branches if b.first < end and b.end > first]
        lead = _lead(within[0], first)
        columns = [*range(start), *(start + place for place in (*lead, *range(first, end)))]
        own = start + len(lead) - first  # a token's column here, less its place in the tree
        added = np.full((end - first, len(columns)), -np.inf, np.float32)
        added[:, :start] = 0
        for branch in within:
            top, bottom = max(branch.first, first), min(branch.end, end)
            seen = _lead(branch, top)
            outside = bisect_left(seen, first)
            rows = added[top - first : bottom - first]
            rows[:, start : start + outside] = 0
            rows[:, [own + place for place in seen[outside:]]] = 0
            rows[:, own + top : own + bottom][np.tri(len(rows), dtype=bool)] = 0
        yield Stretch(first, end, np.array(columns), added)


def _lead(branch: Branch, place: int) -> list[int]:
    """What leads to a token of a branch."""
    return [*branch.lead, *range(branch.first, place)]


def _alike(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))
