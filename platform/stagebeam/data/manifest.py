"""What lies in a folder of shards: counts, checksums, and the rows that were refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stagebeam.recipe import describe

NAME = "manifest.json"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(_Entry):
    """One parquet file."""

    file: str = Field(description="Name inside the folder.")
    rows: int
    bytes: int
    sha256: str = Field(description="Of the file, in hex.")


class Refusal(_Entry):
    """One row of a source that is not in the shards."""

    id: str
    reason: str = Field(description="One sentence.")


class Manifest(_Entry):
    """`manifest.json`, which is written last: a folder without it is not complete."""

    schema_version: Literal[1] = 1
    origin: str = Field(description="Fingerprint of the sources and settings it was made from.")
    rows: int = Field(description="Rows in all shards.")
    shards: tuple[Shard, ...]
    sources: dict[str, int] = Field(description="Rows by the examples' `source`.")
    splits: dict[str, int] = Field(description="Rows by the examples' `split`.")
    refused: tuple[Refusal, ...] = Field(description="Rows left out, in the sources' order.")


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a folder of shards, all of which are there and as long as it says.

    Raises ValueError with one sentence if the folder is not a complete set of shards.
    """
    path = Path(folder) / NAME
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"There are no prepared shards in {folder}: it has no {NAME}.") from None
    except OSError as error:
        raise ValueError(f"Cannot read {path}: {error.strerror}.") from None
    except ValidationError as error:
        raise ValueError(f"The manifest {path} is damaged: {describe(error)}.") from None
    for shard in manifest.shards:
        file = Path(folder) / shard.file
        if not file.is_file():
            raise ValueError(f"The shard {file} that the manifest names is missing.")
        if file.stat().st_size != shard.bytes:
            raise ValueError(
                f"The shard {file} has {file.stat().st_size} bytes, the manifest says "
                f"{shard.bytes}."
            )
    return manifest


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write it in one step: a reader finds the whole of it or none."""
    partial = folder / f".{NAME}.partial"
    try:
        partial.write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
        os.replace(partial, folder / NAME)
    finally:
        partial.unlink(missing_ok=True)
