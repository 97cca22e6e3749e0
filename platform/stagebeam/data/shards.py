"""Examples as rows of parquet shards, read back in order or by row number.

A row holds an `Example` whole, images as the encoded bytes that came. The files also open with
`datasets.load_dataset("parquet", data_files=...)`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stagebeam.data.manifest import read_manifest
from stagebeam.records import Example, Image, Message

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        pa.field(
            "conversations", pa.list_(pa.struct([("role", pa.string()), ("text", pa.string())]))
        ),
        pa.field("source", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("answer", pa.string()),
        pa.field("category", pa.string()),
        pa.field("choices", pa.list_(pa.string())),
    ]
)
_CACHE_BYTES = 128 << 20  # row groups that a reader keeps


def iter_examples(folder: str | Path) -> Iterator[Example]:
    """All examples of a folder in order, a row group in memory at a time; ValueError as
    `read_manifest` raises it."""
    for shard in read_manifest(folder).shards:
        with pq.ParquetFile(Path(folder) / shard.file) as file:
            for group in range(file.num_row_groups):
                for row in file.read_row_group(group).to_pylist():
                    yield to_example(row)


class ShardReader:
    """Examples of a folder by number, in the order in which they were written.

    `split` narrows it to the rows of one split, which are then numbered from 0. Raises ValueError
    as `read_manifest` does.
    """

    def __init__(self, folder: str | Path, split: str | None = None) -> None:
        shards = read_manifest(folder).shards
        self._files = [
            # Read ahead and in threads, a row group of a megabyte takes twice as long.
            pq.ParquetFile(Path(folder) / shard.file, memory_map=True, pre_buffer=False)
            for shard in shards
        ]
        self._groups = [(f, g) for f in self._files for g in range(f.num_row_groups)]
        sizes = [f.metadata.row_group(g).num_rows for f, g in self._groups]
        self._starts = np.array([0, *accumulate(sizes)])  # of each group, and the end of all
        self._numbers = np.arange(self._starts[-1])
        if split is not None:
            splits = np.concatenate([f.read(["split"])["split"].to_numpy() for f in self._files])
            self._numbers = np.flatnonzero(splits == split)
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self._numbers)

    def row(self, index: int) -> Example:
        """Row `index`; raises IndexError outside 0..len-1."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = self._numbers[index]
        group = int(np.searchsorted(self._starts, number, side="right")) - 1
        place = int(number - self._starts[group])
        return to_example(self._table(group).slice(place, 1).to_pylist()[0])

    def rows(self, indices: Sequence[int] | np.ndarray) -> list[Example]:
        """The rows with these numbers, in the order given."""
        return [self.row(int(index)) for index in indices]

    def _table(self, group: int) -> pa.Table:
        """A row group; the ones used last are kept."""
        if group not in self._cache:
            file, number = self._groups[group]
            self._cache[group] = file.read_row_group(number, use_threads=False)
            self._cached_bytes += self._cache[group].nbytes
            while self._cached_bytes > _CACHE_BYTES and len(self._cache) > 1:
                self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        self._cache.move_to_end(group)
        return self._cache[group]


def to_row(example: Example) -> dict[str, Any]:
    return {
        "id": example.id,
        "images": [{"bytes": i.bytes, "path": i.path} for i in example.images],
        "conversations": [{"role": m.role, "text": m.text} for m in example.messages],
        "source": example.source,
        "split": example.split,
        "answer": example.answer,
        "category": example.category,
        "choices": list(example.choices),
    }


def to_example(row: dict[str, Any]) -> Example:
    return Example(
        id=row["id"],
        images=tuple(Image(i["bytes"], i["path"]) for i in row["images"]),
        messages=tuple(Message(m["role"], m["text"]) for m in row["conversations"]),
        source=row["source"],
        split=row["split"],
        answer=row["answer"],
        category=row["category"],
        choices=tuple(row["choices"]),
    )
