"""Rows of parquet files by number, whichever row group of whichever file they lie in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stagebeam.storage import Place, open_parquets

CACHE_BYTES = 128 << 20


class RowGroups:
    """Reads a row group at a time and keeps those used last, up to `cache_bytes` of them and at
    least one."""

    def __init__(self, files: Sequence[Place], cache_bytes: int = CACHE_BYTES) -> None:
        # Read ahead and in threads, a row group of a megabyte takes twice as long.
        self._files = open_parquets(files, memory_map=True, pre_buffer=False)
        self.groups = [(f, g) for f in self._files for g in range(f.num_row_groups)]
        sizes = [f.metadata.row_group(g).num_rows for f, g in self.groups]
        self._starts = np.array([0, *accumulate(sizes)])  # of each group, and the end of all
        self.kept: OrderedDict[int, pa.Table] = OrderedDict()
        self._bytes, self._most_bytes = 0, cache_bytes

    def __len__(self) -> int:
        return int(self._starts[-1])

    def column(self, name: str) -> np.ndarray:
        """A column of text over all rows; there must be a file. A row group in which all rows have
        the same is not read: its statistics say so."""
        return np.concatenate([_values(f, g, name) for f, g in self.groups])

    def row(self, number: int) -> dict[str, Any]:
        """The row, counted over all files in their order."""
        group = int(np.searchsorted(self._starts, number, side="right")) - 1
        place = int(number - self._starts[group])
        row: dict[str, Any] = self._table(group).slice(place, 1).to_pylist()[0]
        return row

    def _table(self, group: int) -> pa.Table:
        if group not in self.kept:
            file, number = self.groups[group]
            self.kept[group] = file.read_row_group(number, use_threads=False)
            self._bytes += self.kept[group].nbytes
            while self._bytes > self._most_bytes and len(self.kept) > 1:
                self._bytes -= self.kept.popitem(last=False)[1].nbytes
        self.kept.move_to_end(group)
        return self.kept[group]


def _values(file: pq.ParquetFile, group: int, name: str) -> np.ndarray:
    about = file.metadata.row_group(group)
    columns = (about.column(number) for number in range(about.num_columns))
    said = next(column.statistics for column in columns if column.path_in_schema == name)
    if said is not None and said.has_min_max and not said.null_count and said.min == said.max:
        return np.full(about.num_rows, said.min, dtype=object)
    column: np.ndarray = file.read_row_group(group, [name])[name].to_numpy()
    return column
