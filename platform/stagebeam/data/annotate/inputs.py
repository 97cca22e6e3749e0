"""What there is to annotate: rows of sources or shards, or captions; how many, and which."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from stagebeam.annotate_config import AnnotateConfig
from stagebeam.data.annotate.instruct import Captioned, read_captions
from stagebeam.data.annotate.output import Rejected
from stagebeam.data.manifest import read_manifest
from stagebeam.data.refusal import Refused
from stagebeam.data.shards import iter_examples
from stagebeam.data.sources import fingerprint, read, spans
from stagebeam.data.sources.files import open_binary
from stagebeam.data.validate import validated
from stagebeam.recipe import DataConfig
from stagebeam.records import Example
from stagebeam.source_config import Source

_COUNTED_ROWS = 4096  # rows of a source that are counted at a time


def rows(config: AnnotateConfig, data: DataConfig) -> Iterator[Example | Captioned | Rejected]:
    """Every row of the input, in order; a row that cannot be asked about is rejected.

    Raises ValueError if the input is not there.
    """
    seen: set[str] = set()
    for row in _read(config, data):
        if isinstance(row, Rejected):
            yield row
        elif row.id in seen:
            yield Rejected(row.id, "duplicate", "An earlier row has the same id.")
        else:
            seen.add(row.id)
            yield row


def _read(config: AnnotateConfig, data: DataConfig) -> Iterator[Example | Captioned | Rejected]:
    if config.captions is not None:
        for line in read_captions(config.captions):
            yield line if isinstance(line, Captioned) else Rejected.of(line)
        return
    # The standard answers are not staged: that is what the teacher is for.
    checks = data.model_copy(update={"require_stages": False})
    for row in validated(_examples(config), checks):
        if not isinstance(row, Example):
            yield Rejected.of(row)
        elif row.messages[0].role == "system":
            reason = "The row has a system message, for which the LLaVA-CoT form has no place."
            yield Rejected(row.id, "turns", reason)
        else:
            yield row


def _examples(config: AnnotateConfig) -> Iterator[Example | Refused]:
    if config.shards is not None:
        yield from iter_examples(config.shards)
    for source in config.sources:
        yield from read(_unstaged(source))


def _unstaged(source: Source) -> Source:
    return source.model_copy(update={"require_stages": False})


def count(config: AnnotateConfig) -> int:
    """Rows of the input. Raises ValueError if it is not there."""
    if config.captions is not None:
        return sum(1 for _ in read_captions(config.captions))
    if config.shards is not None:
        return read_manifest(config.shards).rows
    return sum(map(_count, config.sources))


def _count(source: Source) -> int:
    stretches = [span.rows for span in spans(source, _COUNTED_ROWS)]
    known = [rows for rows in stretches if rows is not None]
    return sum(known) if len(known) == len(stretches) else sum(1 for _ in read(source))


def digest(config: AnnotateConfig) -> str:
    """Twelve hex digits that change with the input. Raises ValueError if it is not there."""
    if config.captions is not None:
        return _digest([_content(config.captions)])
    if config.shards is not None:
        manifest = read_manifest(config.shards)
        return _digest([shard.sha256 for shard in manifest.shards])
    return _digest(map(fingerprint, config.sources))


def _content(path: Path) -> str:
    with open_binary(path, "captions") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]
