"""What one worker makes of one stretch of a source: parquet files and a mark.

The mark says of every row that was read what came of it, without its images or turns. It is
written last and by a rename, so a stretch that has a mark is done, and everything that has to be
decided over all rows is decided from the marks.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from stagebeam.data.content import DIGEST_BYTES, assigned, digest
from stagebeam.data.layout import Layout
from stagebeam.data.refusal import Refused
from stagebeam.data.shards import SCHEMA, to_row
from stagebeam.recipe import DataConfig
from stagebeam.records import Example
from stagebeam.storage import Place, open_parquet, put, scratch_for

# A row group is what reading one row costs, so it ends at whichever comes first.
_GROUP_ROWS = 128
_GROUP_BYTES = 1 << 20
# Compressed images do not shrink further, and unpacking them is most of what reading a row takes.
_TEXT_COLUMNS = (
    "id",
    "images.list.element.path",
    "conversations.list.element.role",
    "conversations.list.element.text",
    "source",
    "split",
    "answer",
    "category",
    "choices.list.element",
)
_PARTS_KEY = b"parts"
_MARK_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("folder", pa.int32(), nullable=False),
        pa.field("fault", pa.string()),  # null: usable, and the next three are too
        pa.field("reason", pa.string()),
        pa.field("row", pa.string()),
        pa.field("digest", pa.binary(DIGEST_BYTES)),
        pa.field("part", pa.int32()),
        pa.field("source", pa.string()),
        pa.field("split", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Part:
    """A parquet file among the unfinished ones of a folder."""

    folder: int
    file: str
    rows: int
    bytes: int
    sha256: str  # in hex


@dataclass(frozen=True, slots=True)
class Mark:
    """What came of a stretch: a row of the table for each row read, in order."""

    parts: tuple[Part, ...]
    table: pa.Table

    def rows(self) -> Iterator[dict[str, Any]]:
        for batch in self.table.to_batches(max_chunksize=1024):
            yield from batch.to_pylist()

    def to_bytes(self) -> bytes:
        about = {_PARTS_KEY: json.dumps([asdict(part) for part in self.parts]).encode()}
        sink = pa.BufferOutputStream()
        pq.write_table(self.table.replace_schema_metadata(about), sink)
        return bytes(sink.getvalue())

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        table = pq.read_table(pa.BufferReader(data))
        return cls(_parts(table.schema), table)


def look(path: Place) -> tuple[tuple[Part, ...], int]:
    """The parts of a mark in a file and its number of rows, without reading these."""
    with open_parquet(path) as file:
        return _parts(file.schema_arrow), file.metadata.num_rows


def _parts(schema: pa.Schema) -> tuple[Part, ...]:
    return tuple(Part(**part) for part in json.loads(schema.metadata[_PARTS_KEY]))


class PartFile:
    """One parquet file in the making; rows are gathered into row groups.

    It gets its name when it is closed, and nothing is left of it if an error comes first.
    """

    def __init__(self, path: Place, folder: int) -> None:
        self.rows = 0
        self._path, self._folder = path, folder
        self._temporary = scratch_for(path)
        self._writer = pq.ParquetWriter(
            self._temporary,
            SCHEMA,
            use_dictionary=["source", "split"],
            compression=dict.fromkeys(_TEXT_COLUMNS, "SNAPPY"),  # no other column
        )
        self._group: list[dict[str, Any]] = []
        self._group_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is not None:
            self.discard()

    def add(self, row: dict[str, Any]) -> None:
        """Add a row of the shards' schema."""
        self.rows += 1
        self._group.append(row)
        self._group_bytes += sum(len(image["bytes"]) for image in row["images"])
        if len(self._group) == _GROUP_ROWS or self._group_bytes >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._group:
            self._writer.write_table(pa.Table.from_pylist(self._group, SCHEMA))
        self._group, self._group_bytes = [], 0

    def close(self) -> Part:
        self._flush()
        self._writer.close()
        with self._temporary.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = self._temporary.stat().st_size
        put(self._temporary, self._path)
        return Part(self._folder, self._path.name, self.rows, size, sha256)

    def discard(self) -> None:
        with suppress(OSError):  # the folder may be gone
            self._writer.close()
        self._temporary.unlink(missing_ok=True)


class Writer:
    """Takes the checked rows of stretch `number` and makes its mark.

    Rows are written to part files in `places`, one for each folder of the layout; None writes
    nothing.
    """

    def __init__(
        self,
        number: int,
        split: str,
        config: DataConfig,
        layout: Layout,
        places: Sequence[Place] | None,
    ) -> None:
        self._number, self._config, self._layout, self._places = number, config, layout, places
        self._home = layout.folder(split)  # where refusals are told
        self._open: dict[int, tuple[int, PartFile]] = {}  # of each folder: part number and file
        self._parts: dict[int, Part] = {}
        self._per_folder: Counter[int] = Counter()
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        for _number, file in self._open.values():
            file.discard()

    def add(self, row: Example | Refused) -> None:
        if isinstance(row, Refused):
            told = {"id": row.id, "reason": row.reason, "row": row.row}
            clean = {key: _encodable(text) for key, text in told.items()}
            self._rows.append({**clean, "fault": row.fault, "folder": self._home})
            return
        example = assigned(row, self._config.held_out)
        folder = self._layout.folder(example.split)
        self._rows.append(
            {
                "id": example.id,
                "folder": folder,
                "digest": digest(example),
                "part": None if self._places is None else self._write(example, folder),
                "source": example.source,
                "split": example.split,
            }
        )

    def close(self) -> Mark:
        for folder in list(self._open):
            self._close(folder)
        parts = tuple(self._parts[number] for number in sorted(self._parts))
        return Mark(parts, pa.Table.from_pylist(self._rows, _MARK_SCHEMA))

    def _write(self, example: Example, folder: int) -> int:
        """Returns the number of the part that has the row."""
        assert self._places is not None
        if folder not in self._open:
            name = f"rows-{self._number:05d}-{self._per_folder[folder]:03d}.parquet"
            number = self._per_folder.total()
            self._open[folder] = number, PartFile(self._places[folder] / name, folder)
            self._per_folder[folder] += 1
        number, file = self._open[folder]
        file.add(to_row(example))
        if file.rows == self._config.rows_per_shard:
            self._close(folder)
        return number

    def _close(self, folder: int) -> None:
        number, file = self._open[folder]
        self._parts[number] = file.close()
        del self._open[folder]


def _encodable(text: str) -> str:
    """JSON can spell half of a surrogate pair, which no file can hold."""
    return text.encode("utf-8", "backslashreplace").decode()
