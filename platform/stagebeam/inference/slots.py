"""Keys and values of many rows in one tensor, each row in a slot of its own, from its first token
on: rows come, go and are forked without touching the others, and shapes change in big steps only.

Shapes: L layers, R rows (slots), N key heads, W columns, T tokens, D width of a head, S vision
tokens, G questions.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from stagebeam.models.runtime import KvShape

COLUMNS = 64  # a cache grows by so many at least, and is read in multiples of it


def rounded(columns: int) -> int:
    """Up to whole blocks."""
    return -(-columns // COLUMNS) * COLUMNS


class Slots:
    """The tensor, [L, 2, R, N, W, D]. What lies beyond a row's length is never read."""

    def __init__(self, shape: KvShape, dtype: torch.dtype, device: torch.device) -> None:
        self._layers, self._heads, self._head = len(shape.layers), shape.heads, shape.width
        self.kv = torch.zeros(self._size(0, 0), dtype=dtype, device=device)

    def _size(self, rows: int, columns: int) -> tuple[int, ...]:
        return (self._layers, 2, rows, self._heads, columns, self._head)

    def reserve(self, rows: int, columns: int) -> None:
        """Have room for so many; twice what there was, so that growing is rare."""
        has_rows, has_columns = self.kv.shape[2], self.kv.shape[4]
        if rows <= has_rows and columns <= has_columns:
            return
        rows = max(rows, 2 * has_rows) if rows > has_rows else has_rows
        columns = rounded(max(columns, 2 * has_columns)) if columns > has_columns else has_columns
        grown = self.kv.new_zeros(self._size(rows, columns))
        grown[:, :, :has_rows, :, :has_columns] = self.kv
        self.kv = grown

    def put(self, row: int, count: int, kv: torch.Tensor) -> None:
        """Begin `count` rows from `row` on with these tokens, [L, 2, N, T, D]."""
        self.kv[:, :, row : row + count, :, : kv.shape[3]] = kv[:, :, None]

    def take(self, row: int, length: int) -> torch.Tensor:
        """A copy of a row's first tokens, [L, 2, N, T, D]."""
        return self.kv[:, :, row, :, :length].clone()

    def move(self, row: int, to: int, length: int) -> None:
        self.kv[:, :, to, :, :length] = self.kv[:, :, row, :, :length]


class _Growing(CacheLayerMixin):
    """One layer's part of the slots, seen through what the cache is aimed at."""

    def __init__(self, cache: SlotCache, layer: int) -> None:
        super().__init__()
        self._cache, self._layer = cache, layer

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes [R, N, T, D], or [1, N, Q, D] of tokens side by side, and gives [R, N, W, D]."""
        cache = self._cache
        keys, values = cache.slots.kv[self._layer]
        if isinstance(cache.at, int):
            columns = slice(cache.at, cache.at + key_states.shape[2])
            keys[: cache.rows, :, columns] = key_states
            values[: cache.rows, :, columns] = value_states
        else:
            keys[cache.index, :, cache.at] = _each(key_states)
            values[cache.index, :, cache.at] = _each(value_states)
        seen = (slice(cache.rows), slice(None), slice(cache.width))
        return keys[seen], values[seen]

    def lazy_initialization(self, *_: Any) -> None:
        raise AssertionError("slots are there from the start")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.width, 0

    def get_seq_length(self) -> int:
        return self._cache.width

    def get_max_length(self) -> int:
        return -1


def _each(states: torch.Tensor) -> torch.Tensor:
    """[Q, N, D] of rows that bring one token, [Q, N, 1, D], or of tokens side by side."""
    return states[:, :, 0] if states.shape[2] == 1 else states[0].transpose(0, 1)


class _Still(_Growing):
    """A layer that holds images: nothing is written, `keys` and `values` are [G, N, S, D]."""

    def update(self, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError("images are put in, not computed on the way")


class SlotCache(Cache):
    """transformers' cache over slots. Aim it before each pass."""

    def __init__(
        self, shape: KvShape, layers: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """`layers` are all of the model's; those that are not in `shape` hold images."""
        self.slots = Slots(shape, dtype, device)
        self.rows = self.width = 0
        self.at: int | torch.Tensor = 0  # the column of the new tokens, or of each one [Q]
        self.index = torch.arange(0, device=device)  # [Q] the row of each one
        self._ends = self.index  # of rows that bring one token each
        self._device = device
        order = {layer: place for place, layer in enumerate(shape.layers)}
        super().__init__(
            layers=[
                _Growing(self, order[layer]) if layer in order else _Still(self, layer)
                for layer in range(layers)
            ]
        )
        self._still = [layer for layer in self.layers if isinstance(layer, _Still)]
        self.show(None)

    def show(self, images: torch.Tensor | None) -> None:
        """What the layers that hold images hold, [L, 2, G, N, S, D]; None: nothing, they are
        skipped."""
        for place, layer in enumerate(self._still):
            layer.is_initialized = images is not None
            if images is not None:
                layer.keys, layer.values = images[place]

    def aim_at_row(self, start: int, count: int) -> None:
        """The pass brings `count` tokens of one row, in slot 0, that follow `start` others."""
        self.slots.reserve(1, start + count)
        self.rows, self.at, self.width = 1, start, start + count

    def aim_at_ends(self, at: torch.Tensor, last: int) -> None:
        """The pass brings one token for each of the first rows, to columns `at` [R], of which
        `last` is the last."""
        rows = len(at)
        if len(self._ends) != rows:
            self._ends = torch.arange(rows, device=self._device)
        self.aim_at(rows, self._ends, at, last)

    def aim_at(self, rows: int, index: torch.Tensor, at: torch.Tensor, last: int) -> None:
        """The pass brings tokens for the first `rows`: to columns `at` [Q] of the rows `index`
        [Q], of which columns `last` is the last."""
        self.width = rounded(last + 1)
        self.slots.reserve(rows, self.width)
        self.rows, self.index, self.at = rows, index, at
