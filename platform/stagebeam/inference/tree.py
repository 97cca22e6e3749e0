"""Rows that begin alike, laid into one sequence in which no token stands twice: a tree. A token
sees the tokens that lead to it, so that one pass reads every row as if it were alone.

Rows are laid in order, so what follows from a token stands behind it without a gap: a token sees
another if it stands before that one's end. Attention is done for one stretch of the tree after
another, over what leads to it alone: over all of the tree, it would grow with the tree's square.

Shapes: T tokens of the tree, C rows; S tokens of a stretch, W columns that they may see.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Tree:
    """Tokens from `start` on; those before are the same in all rows and lie elsewhere."""

    start: int
    ids: list[int]  # [T]
    depth: list[int]  # [T] a token's place in its row
    ends: list[int]  # [T] behind the last token that it leads to
    paths: list[list[int]]  # of each row, where its tokens from `start` on lie


@dataclass(frozen=True, slots=True)
class Stretch:
    """Tokens `first` to `end` of the tree. Columns count what lies before the tree too."""

    first: int
    end: int
    columns: slice | NDArray[np.int64]  # [W]
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
    ends: list[int] = []
    paths: list[list[int]] = [[] for _ in rows]
    before: list[int] = []
    path: list[int] = []
    for row, at in sorted((list(row[start:]), at) for at, row in enumerate(rows)):
        known, first = _alike(before, row), len(ids)
        for place in path[known:]:
            ends[place] = first
        ids += row[known:]
        depth += range(start + known, start + len(row))
        ends += [0] * (len(ids) - first)
        path = paths[at] = [*path[:known], *range(first, len(ids))]
        before = row
    for place in path:
        ends[place] = len(ids)
    return Tree(start, ids, depth, ends, paths)


def stretches(tree: Tree, size: int) -> Iterator[Stretch]:
    """The whole tree, `size` tokens at a time."""
    start, ends = tree.start, np.array(tree.ends)
    for first in range(0, len(ends), size):
        tokens = np.arange(first, min(first + size, len(ends)))
        lead = np.flatnonzero(ends[:first] > first)
        seen = np.concatenate((lead, tokens))
        added = np.zeros((len(tokens), start + len(seen)), np.float32)
        behind = tokens[:, None]
        added[:, start:][(behind < seen) | (behind >= ends[seen])] = -np.inf
        end = first + len(tokens)
        columns = np.concatenate((np.arange(start), start + seen))
        # where nothing is left out, nothing has to be picked out
        yield Stretch(first, end, slice(start + end) if len(lead) == first else columns, added)


def _alike(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))
