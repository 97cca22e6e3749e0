"""What an offline run keeps, read back from the file that `wandb sync` would send."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK, _HEADER = 32 * 1024, 7
_FULL, _FIRST, _LAST = 1, 2, 4


def history(folder: Path) -> list[dict[str, Any]]:
    """Every logged step of the run in `folder`."""
    return [
        {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
        for record in records(folder)
        if record.WhichOneof("record_type") == "history"
    ]


def table_files(folder: Path, name: str) -> dict[str, Path]:
    """What a table will send beside itself, by its place there: pictures, for one."""
    (artifact,) = (
        record.artifact
        for record in records(folder)
        if record.WhichOneof("record_type") == "artifact"
        and record.artifact.name.endswith(f"-{name}")
    )
    return {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}


def records(folder: Path) -> list[Record]:
    """All of a finished run."""
    (path,) = folder.glob("*.wandb")
    deadline = time.monotonic() + 20
    # wandb's own process may write the end of the file a moment after `finish` has returned.
    while not (found := list(_read(path))) or found[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < deadline, "the run's file never became whole"
        time.sleep(0.02)
    return found


def _read(path: Path) -> Iterator[Record]:
    """The file is a LevelDB log: a header of 7 bytes, then blocks of records, each with a checksum
    (4 bytes), a length (2) and a type (1); what does not fit in a block goes on in the next."""
    content, at, parts = path.read_bytes(), _HEADER, b""
    while at + _HEADER <= len(content):
        if _BLOCK - at % _BLOCK < _HEADER:  # no header fits here
            at += _BLOCK - at % _BLOCK
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        data = content[at + _HEADER : at + _HEADER + length]
        parts = data if kind in (_FULL, _FIRST) else parts + data
        if kind in (_FULL, _LAST):
            yield Record.FromString(parts)
        at += _HEADER + length
