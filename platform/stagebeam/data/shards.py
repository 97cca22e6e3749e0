"""Examples as parquet shards: how they are written, and read back in order or by row number.

A row holds an `Example` whole, images as the encoded bytes that came. The files also open with
`datasets.load_dataset("parquet", data_files=...)`.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate, chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stagebeam.data import manifest as manifests
from stagebeam.data.manifest import Manifest, Refusal, Shard, read_manifest
from stagebeam.data.sources import fingerprint
from stagebeam.data.validate import Refused
from stagebeam.recipe import DataConfig
from stagebeam.records import Example, Image, Message

__all__ = [
    "Manifest",
    "ShardReader",
    "finished",
    "iter_examples",
    "origin",
    "read_manifest",
    "survey",
    "write_shards",
]

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
# A row group is what reading one row costs, so it ends at whichever comes first.
_GROUP_ROWS = 128
_GROUP_BYTES = 1 << 20
_PARTIAL = ".partial"  # what is being written lies in this folder inside the target
_CACHE_BYTES = 128 << 20  # row groups that a reader keeps


def origin(config: DataConfig) -> str:
    """Changes with whatever changes the shards: the sources, their content, the checks.

    Raises ValueError if a source is not there.
    """
    settings = config.model_dump_json(
        include={"rows_per_shard", "require_stages", "max_image_pixels"}
    )
    text = settings + "".join(map(fingerprint, config.sources))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def finished(folder: Path, wanted: str) -> Manifest | None:
    """The manifest, if the folder already holds the shards of this origin.

    Raises ValueError if it holds complete shards of another origin.
    """
    if not (folder / manifests.NAME).exists():
        return None
    manifest = read_manifest(folder)
    if manifest.origin != wanted:
        raise ValueError(
            f"The shards in {folder} were made from other sources or settings; "
            "prepare them again with --fresh, or name another folder."
        )
    return manifest


def write_shards(
    rows: Iterable[Example | Refused],
    folder: str | Path,
    config: DataConfig,
    *,
    fresh: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Write examples, already checked, as shards of `config.rows_per_shard` rows and a manifest.

    A folder that already holds them is left as it is and `rows` is not read. Otherwise the shards
    are written beside what is there, moved into place once all are whole, and the manifest is
    written last; if `rows` raises, the folder is left as it was. A row whose id has occurred is
    refused. `on_progress` is called with the number of rows read so far.

    Raises ValueError if the folder holds complete shards of another origin and `fresh` is not set,
    if a source is not there, and if no row can be used.
    """
    folder = Path(folder)
    wanted = origin(config)
    if not fresh and (done := finished(folder, wanted)) is not None:
        return done
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
    partial.mkdir()
    try:
        tally = _Tally()
        shards = _write(tally.accept(rows, on_progress), partial, config.rows_per_shard)
        manifest = tally.manifest(wanted, shards)
        if not shards:
            reason = f"; the first refusal: {tally.refused[0].reason}" if tally.refused else "."
            raise ValueError(
                f"Nothing for {folder}: none of {len(tally.refused)} rows is usable{reason}"
            )
        _move_into_place(manifest, partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for path in made:
            with suppress(OSError):  # not empty: not ours to remove
                path.rmdir()
        raise
    return manifest


def survey(
    rows: Iterable[Example | Refused],
    config: DataConfig,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> Manifest:
    """The manifest that `write_shards` would make of these rows, without shards; writes nothing."""
    tally = _Tally()
    for _ in tally.accept(rows, on_progress):
        pass
    return tally.manifest(origin(config), ())


def iter_examples(folder: str | Path) -> Iterator[Example]:
    """All examples of a folder in order, a row group in memory at a time; ValueError as
    `read_manifest` raises it."""
    for shard in read_manifest(folder).shards:
        with pq.ParquetFile(Path(folder) / shard.file) as file:
            for group in range(file.num_row_groups):
                for row in file.read_row_group(group).to_pylist():
                    yield _to_example(row)


class ShardReader:
    """Examples of a folder by number, in the order in which they were written.

    `split` narrows it to the rows of one split, which are then numbered from 0. Raises ValueError
    as `read_manifest` does.
    """

    def __init__(self, folder: str | Path, split: str | None = None) -> None:
        shards = read_manifest(folder).shards
        self._files = [pq.ParquetFile(Path(folder) / s.file, memory_map=True) for s in shards]
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
        return _to_example(self._table(group).slice(place, 1).to_pylist()[0])

    def rows(self, indices: Sequence[int] | np.ndarray) -> list[Example]:
        """The rows with these numbers, in the order given."""
        return [self.row(int(index)) for index in indices]

    def _table(self, group: int) -> pa.Table:
        """A row group; the ones used last are kept."""
        if group not in self._cache:
            file, number = self._groups[group]
            self._cache[group] = file.read_row_group(number)
            self._cached_bytes += self._cache[group].nbytes
            while self._cached_bytes > _CACHE_BYTES and len(self._cache) > 1:
                self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        self._cache.move_to_end(group)
        return self._cache[group]


class _ShardFile:
    """One parquet file in the making; rows are gathered into row groups."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self._writer = pq.ParquetWriter(path, SCHEMA, use_dictionary=["source", "split"])
        self._group: list[dict[str, Any]] = []
        self._group_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def add(self, example: Example) -> None:
        self.rows += 1
        self._group.append(_to_row(example))
        self._group_bytes += sum(len(image.bytes) for image in example.images)
        if len(self._group) == _GROUP_ROWS or self._group_bytes >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._group:
            self._writer.write_table(pa.Table.from_pylist(self._group, SCHEMA))
        self._group, self._group_bytes = [], 0

    def describe(self) -> Shard:
        """Its line in the manifest, once it is closed."""
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = self.path.stat().st_size
        return Shard(file=self.path.name, rows=self.rows, bytes=size, sha256=digest)


class _Tally:
    """Counts rows as they pass."""

    def __init__(self) -> None:
        self.refused: list[Refusal] = []
        self.sources: Counter[str] = Counter()
        self.splits: Counter[str] = Counter()

    def accept(
        self, rows: Iterable[Example | Refused], on_progress: Callable[[int], None] | None
    ) -> Iterator[Example]:
        """The examples among the rows, the second one of an id left out."""
        seen: set[str] = set()
        for number, row in enumerate(rows, start=1):
            if isinstance(row, Refused):
                self.refused.append(Refusal(id=row.id, reason=row.reason))
            elif row.id in seen:
                self.refused.append(Refusal(id=row.id, reason="An earlier row has the same id."))
            else:
                seen.add(row.id)
                self.sources[row.source] += 1
                self.splits[row.split] += 1
                yield row
            if on_progress is not None:
                on_progress(number)

    def manifest(self, wanted: str, shards: Iterable[Shard]) -> Manifest:
        return Manifest(
            origin=wanted,
            rows=self.sources.total(),
            shards=tuple(shards),
            sources=dict(sorted(self.sources.items())),
            splits=dict(sorted(self.splits.items())),
            refused=tuple(self.refused),
        )


def _write(examples: Iterator[Example], folder: Path, rows_per_shard: int) -> list[Shard]:
    shards: list[Shard] = []
    for first in examples:
        with _ShardFile(folder / f"part-{len(shards):05d}.parquet") as shard:
            for example in chain([first], islice(examples, rows_per_shard - 1)):
                shard.add(example)
        shards.append(shard.describe())
    return shards


def _move_into_place(manifest: Manifest, partial: Path, folder: Path) -> None:
    """Replace the folder's shards; while it has no manifest it counts as unfinished."""
    (folder / manifests.NAME).unlink(missing_ok=True)
    for old in folder.glob("part-*.parquet"):
        old.unlink()
    for shard in manifest.shards:
        (partial / shard.file).rename(folder / shard.file)
    partial.rmdir()
    manifests.write_manifest(manifest, folder)


def _to_row(example: Example) -> dict[str, Any]:
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


def _to_example(row: dict[str, Any]) -> Example:
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
