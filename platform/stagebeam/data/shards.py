"""Examples as rows of parquet shards, read back in order or by row number.

A row holds an `Example` whole, images as the encoded bytes that came. The files also open with
`datasets.load_dataset("parquet", data_files=...)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stagebeam.data.manifest import read_manifest
from stagebeam.data.row_groups import CACHE_BYTES, RowGroups
from stagebeam.records import Example, Image, Message
from stagebeam.storage import Place, open_parquet, place_of

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


def iter_examples(folder: str | Place) -> Iterator[Example]:
    """All examples of a folder in order, a row group in memory at a time; ValueError as
    `read_manifest` raises it."""
    for shard in read_manifest(folder).shards:
        with open_parquet(place_of(folder) / shard.file) as file:
            for group in range(file.num_row_groups):
                for row in file.read_row_group(group).to_pylist():
                    yield to_example(row)


class ShardReader:
    """Examples of a folder by number, in the order in which they were written.

    `split` narrows it to the rows of one split, which are then numbered from 0. Row groups of up to
    `cache_bytes` are kept, at least one. Raises ValueError as `read_manifest` does.
    """

    def __init__(
        self, folder: str | Place, split: str | None = None, cache_bytes: int = CACHE_BYTES
    ) -> None:
        files = [place_of(folder) / shard.file for shard in read_manifest(folder).shards]
        self.row_groups = RowGroups(files, cache_bytes)
        self._numbers = np.arange(len(self.row_groups))
        if split is not None:
            self._numbers = np.flatnonzero(self.row_groups.column("split") == split)

    def __len__(self) -> int:
        return len(self._numbers)

    def row(self, index: int) -> Example:
        """Row `index`; raises IndexError outside 0..len-1."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return to_example(self.row_groups.row(self._numbers[index]))

    def rows(self, indices: Sequence[int] | np.ndarray) -> list[Example]:
        """The rows with these numbers, in the order given."""
        return [self.row(int(index)) for index in indices]


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
