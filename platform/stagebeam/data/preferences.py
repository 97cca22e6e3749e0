"""Pairs of texts of which one is known to be better: what judges learn from and are measured on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

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
    ]
)


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
        return Preference(
            id=example.id,
            images=example.images,
            messages=example.messages[:-1],
            stage=stage,
            prefix=prefix,
            chosen=right,
            rejected=space + wrap(stage, found[stage]),
            category=example.category,
        )
    return None


def write_preferences(path: Path, preferences: Iterable[Preference]) -> int:
    """Write one parquet file, whole or not at all; returns the rows written."""
    rows = []
    for preference in preferences:
        row = asdict(preference)
        row["conversations"] = row.pop("messages")
        rows.append({**row, "stage": preference.stage.value})
    partial = path.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), partial)
    partial.rename(path)
    return len(rows)


def read_preferences(path: Path) -> list[Preference]:
    """All rows of a file. Raises ValueError where there is none."""
    if not path.exists():
        raise ValueError(f"There is no preference file at {path}.")
    return [
        Preference(
            id=row["id"],
            images=tuple(Image(**image) for image in row["images"]),
            messages=tuple(Message(**message) for message in row["conversations"]),
            stage=Stage(row["stage"]),
            prefix=row["prefix"],
            chosen=row["chosen"],
            rejected=row["rejected"],
            category=row["category"],
        )
        for row in pq.read_table(path).to_pylist()
    ]
