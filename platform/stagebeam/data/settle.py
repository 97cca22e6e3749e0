"""What is decided over all rows: duplicates, names, and the counts of each folder.

It needs the marks of the stretches alone, one at a time and in the sources' order, and keeps
nothing of a row but its id, its digest and, of a refused one, the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from stagebeam.data.manifest import Manifest, Refusal, Shard
from stagebeam.data.parts import Mark, Part, PartFile
from stagebeam.storage import Place, open_parquet

Tell = Callable[[int, dict[str, str]], None]


@dataclass(frozen=True, slots=True)
class Stretch:
    """What the decision needs to know of the source of a stretch."""

    kind: str
    place: str  # file, folder or name of the source; empty if it is drawn
    deduplicate: bool = True


@dataclass(slots=True)
class Edits:
    """Changes to the rows of a part, which go by their number inside it."""

    dropped: set[int] = field(default_factory=set)
    renamed: dict[int, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.dropped or self.renamed)


@dataclass(slots=True)
class Tally:
    """What goes into one folder."""

    read: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    refused: list[Refusal] = field(default_factory=list)
    parts: list[tuple[Part, Edits]] = field(default_factory=list)

    def manifest(self, origin: str, shards: Iterable[Shard]) -> Manifest:
        return Manifest(
            origin=origin,
            read=self.read,
            rows=self.sources.total(),
            shards=tuple(shards),
            sources=dict(sorted(self.sources.items())),
            splits=dict(sorted(self.splits.items())),
            faults=dict(sorted(Counter(r.fault for r in self.refused).items())),
            refused=tuple(self.refused),
        )


def settle(
    marks: Iterable[tuple[Stretch, Mark]], folders: int, tell: Tell | None = None
) -> list[Tally]:
    """The tally of each folder.

    Of rows with the same content the first stays, wherever it goes; the others are refused if
    their source is deduplicated. A row whose id has occurred gets another. `tell` is called with
    the folder and the record of each refused row.
    """
    tallies = [Tally() for _ in range(folders)]
    seen: dict[bytes, str] = {}
    names: set[str] = set()
    for stretch, mark in marks:
        edits = [Edits() for _ in mark.parts]
        places: Counter[int | None] = Counter()  # rows so far of each part
        for row in mark.rows():
            tally = tallies[row["folder"]]
            tally.read += 1
            place = places[row["part"]]
            if row["fault"] is None:
                places[row["part"]] += 1
                first = seen.get(row["digest"])
                if first is None or not stretch.deduplicate:
                    name = _free_name(row, names)
                    names.add(name)
                    seen.setdefault(row["digest"], name)
                    tally.sources[row["source"]] += 1
                    tally.splits[row["split"]] += 1
                    if name != row["id"] and row["part"] is not None:
                        edits[row["part"]].renamed[place] = name
                    continue
                if row["part"] is not None:
                    edits[row["part"]].dropped.add(place)
                row = {**row, "fault": "duplicate", "reason": f"The same content as row {first}."}
            record = {key: row[key] or "" for key in ("id", "fault", "reason", "row")}
            tally.refused.append(Refusal(**{k: record[k] for k in ("id", "fault", "reason")}))
            if tell is not None:
                tell(row["folder"], {**record, "kind": stretch.kind, "place": stretch.place})
        for part, changes in zip(mark.parts, edits, strict=True):
            if len(changes.dropped) < part.rows:
                tallies[part.folder].parts.append((part, changes))
    return tallies


def _free_name(row: dict[str, Any], names: set[str]) -> str:
    """The id; if it has occurred, `<id>~<8 hex digits of the content>`; of rows that are equal in
    that too, the second gets `~2` behind it."""
    if row["id"] not in names:
        return row["id"]
    name = f"{row['id']}~{row['digest'].hex()[:8]}"
    if name not in names:
        return name
    return next(other for n in count(2) if (other := f"{name}~{n}") not in names)


def edit(place: Place, part: Part, edits: Edits) -> Part:
    """Write the part again without the rows dropped and with the names given."""
    path = place / part.file
    copy = path.with_name(f"edited-{part.file}")
    with open_parquet(path) as old, PartFile(copy, part.folder) as new:
        number = 0
        for group in range(old.num_row_groups):
            for row in old.read_row_group(group).to_pylist():
                if number not in edits.dropped:
                    new.add({**row, "id": edits.renamed.get(number, row["id"])})
                number += 1
        return new.close()
