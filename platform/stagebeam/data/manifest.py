"""What lies in a folder of shards: counts, checksums, and the rows that were refused."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stagebeam.recipe import describe
from stagebeam.storage import Place, RemotePath, place_of, sizes

NAME = "manifest.json"
REFUSED = "refused.jsonl"  # the refused rows themselves, beside it


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
    fault: str = Field("malformed row", description="What kind of fault it has.")
    reason: str = Field(description="One sentence.")


class Manifest(_Entry):
    """`manifest.json`, which is written last: a folder without it is not complete."""

    schema_version: Literal[1] = 1
    origin: str = Field(description="Fingerprint of the sources and settings it was made from.")
    read: int = Field(description="Rows that were read for this folder: used and refused.")
    rows: int = Field(description="Rows in all shards.")
    shards: tuple[Shard, ...]
    sources: dict[str, int] = Field(description="Rows by the examples' `source`.")
    splits: dict[str, int] = Field(description="Rows by the examples' `split`.")
    faults: dict[str, int] = Field(description="Refused rows by fault.")
    refused: tuple[Refusal, ...] = Field(description="Rows left out, in the sources' order.")

    @model_validator(mode="before")
    @classmethod
    def _earlier(cls, data: Any) -> Any:
        """Manifests were once written without `read` and `faults`, and stay readable."""
        if isinstance(data, dict) and not data.keys() & {"read", "faults"}:
            refused = data.get("refused") or ()
            faults = Counter(r.get("fault", "malformed row") for r in refused)
            return {**data, "read": (data.get("rows") or 0) + len(refused), "faults": faults}
        return data

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.rows + len(self.refused) != self.read:
            raise ValueError(
                f"{self.rows} rows and {len(self.refused)} refused are not the {self.read} read"
            )
        totals = {sum(self.sources.values()), sum(self.splits.values())}
        if totals != {self.rows} or sum(self.faults.values()) != len(self.refused):
            raise ValueError("the counts by source, split or fault do not add up")
        return self


def read_manifest(folder: str | Place) -> Manifest:
    """The manifest of a folder of shards, all of which are there and as long as it says.

    Raises ValueError with one sentence if the folder is not a complete set of shards.
    """
    folder = place_of(folder)
    path = folder / NAME
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"There are no prepared shards in {folder}: it has no {NAME}.") from None
    except OSError as error:
        raise ValueError(f"Cannot read {path}: {error.strerror}.") from None
    except ValidationError as error:
        raise ValueError(f"The manifest {path} is damaged: {describe(error)}.") from None
    there = sizes(folder)
    for shard in manifest.shards:
        file, size = folder / shard.file, there.get(shard.file)
        if size is None:
            raise ValueError(f"The shard {file} that the manifest names is missing.")
        if size != shard.bytes:
            raise ValueError(f"The shard {file} has {size} bytes, the manifest says {shard.bytes}.")
    return manifest


def write_manifest(manifest: Manifest, folder: Place) -> None:
    """Write it in one step: a reader finds the whole of it or none."""
    text = manifest.model_dump_json(indent=1) + "\n"
    if isinstance(folder, RemotePath):
        (folder / NAME).write_text(text)
        return
    partial = folder / f".{NAME}.partial"  # always the same: what a kill leaves is written over
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, folder / NAME)
    finally:
        partial.unlink(missing_ok=True)
