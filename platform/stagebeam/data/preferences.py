"""Pairs of texts of which one is known to be better: what judges learn from and are measured on."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
import pyarrow.parquet as pq

from stagebeam.data import manifest as manifests
from stagebeam.data.layout import TRAIN_SPLIT
from stagebeam.data.manifest import Manifest, Refusal, Shard
from stagebeam.data.row_groups import RowGroups
from stagebeam.records import Example, Image, Message
from stagebeam.stages import STAGES, Stage, parse, wrap

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("conversations", pa.list_(pa.struct([("role", pa.string()), ("text", pa.string())]))),
        ("stage", pa.string()),
        ("prefix", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("category", pa.string()),
        ("margin", pa.float64()),
        ("trace", pa.string()),
    ]
)
# A row group is what reading one row costs, so it ends at whichever comes first.
_GROUP_ROWS = 128
_GROUP_BYTES = 1 << 20  # of images


@dataclass(frozen=True, slots=True)
class Preference:
    """`chosen` is better than `rejected` as this stage of the answer, after `prefix`."""

    id: str
    images: tuple[Image, ...]
    messages: tuple[Message, ...]  # up to and with the question
    stage: Stage
    prefix: str
    chosen: str
    rejected: str
    category: str | None = None
    margin: float | None = None  # log-odds of the judge whose word it is; None where it is known
    trace: str | None = None  # id of the trace that it was found in

    @classmethod
    def about(
        cls, example: Example, stage: Stage, prefix: str, chosen: str, rejected: str
    ) -> Preference:
        """Of two texts of one stage of an example's last answer."""
        return cls(
            id=example.id,
            images=example.images,
            messages=example.messages[:-1],
            stage=stage,
            prefix=prefix,
            chosen=chosen,
            rejected=rejected,
            category=example.category,
        )


def first_fault(example: Example, answer: str) -> Preference | None:
    """The first stage in which a sampled answer differs from the gold one, against the gold.

    None where all stages agree, or where the differing stage is absent: that loses by rule and
    teaches nothing. Stages before the first fault equal the gold, so prefix and label are exact;
    this holds where the gold text is the only right one, as in drawn scenes.
    """
    gold, found = parse(example.messages[-1].text).bodies, parse(answer).bodies
    prefix = ""
    for stage in STAGES:
        space = " " if prefix else ""  # as `render` writes it, for tokenizers that see it
        right = space + wrap(stage, gold[stage])
        if found.get(stage) == gold[stage]:
            prefix += right
            continue
        if not found.get(stage):
            return None
        wrong = space + wrap(stage, found[stage])
        return Preference.about(example, stage, prefix, right, wrong)
    return None


def write_preferences(path: Path, preferences: Iterable[Preference]) -> int:
    """Write one parquet file, whole or not at all, a row group in memory at a time; returns the
    rows written."""
    partial, rows = path.with_suffix(".partial"), 0
    with pq.ParquetWriter(partial, _SCHEMA) as writer:
        for group in _groups(preferences):
            writer.write_table(pa.Table.from_pylist(group, schema=_SCHEMA))
            rows += len(group)
    partial.rename(path)
    return rows


def _groups(preferences: Iterable[Preference]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for preference in preferences:
        row = asdict(preference)
        row["conversations"] = row.pop("messages")
        group.append({**row, "stage": preference.stage.value})
        size += sum(len(image.bytes) for image in preference.images)
        if len(group) == _GROUP_ROWS or size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def write_preference_shards(
    folder: Path,
    preferences: Iterable[Preference],
    *,
    origin: str,
    source: str,
    refused: Callable[[], Sequence[Refusal]],
    rows_per_shard: int = 4096,
) -> Manifest:
    """Write shards and, last, their manifest; `refused` is asked once all rows are written.

    Raises ValueError if the folder has a manifest already, or there is not one row.
    """
    if (folder / manifests.NAME).exists():
        raise ValueError(f"{folder} holds shards already; name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    remaining: Iterator[Preference] = iter(preferences)
    shards: list[Shard] = []
    for first in remaining:
        path = folder / f"part-{len(shards):05d}.parquet"
        count = write_preferences(path, chain((first,), islice(remaining, rows_per_shard - 1)))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        shards.append(Shard(file=path.name, rows=count, bytes=size, sha256=digest))
    rows, left_out = sum(shard.rows for shard in shards), tuple(refused())
    if not rows:
        raise ValueError(f"Nothing for {folder}: there is no preference that can be used.")
    manifest = Manifest(
        origin=origin,
        read=rows + len(left_out),
        rows=rows,
        shards=tuple(shards),
        sources={source: rows},
        splits={TRAIN_SPLIT: rows},
        faults=dict(Counter(refusal.fault for refusal in left_out)),
        refused=left_out,
    )
    manifests.write_manifest(manifest, folder)
    return manifest


class Preferences(Sequence[Preference]):
    """The rows of a file, or of a folder of shards, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError where there is none."""
        if not path.exists():
            raise ValueError(f"There is no preference file at {path}.")
        files = [path]
        if path.is_dir():
            files = [path / shard.file for shard in manifests.read_manifest(path).shards]
        self._rows = RowGroups(files)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Preference: ...
    @overload
    def __getitem__(self, index: slice) -> list[Preference]: ...
    def __getitem__(self, index: int | slice) -> Preference | list[Preference]:
        numbers = range(len(self))[index]
        if isinstance(numbers, int):
            return _preference(self._rows.row(numbers))
        return [self[number] for number in numbers]


def read_preferences(path: Path) -> list[Preference]:
    """All of them at once. Raises ValueError as `Preferences` does."""
    return list(Preferences(path))


def _preference(row: dict[str, Any]) -> Preference:
    return Preference(
        id=row["id"],
        images=tuple(Image(**image) for image in row["images"]),
        messages=tuple(Message(**message) for message in row["conversations"]),
        stage=Stage(row["stage"]),
        prefix=row["prefix"],
        chosen=row["chosen"],
        rejected=row["rejected"],
        category=row["category"],
        margin=row.get("margin"),  # files of first faults once had neither
        trace=row.get("trace"),
    )
