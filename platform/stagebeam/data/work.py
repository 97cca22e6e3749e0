"""Shards in the making: what lies in a folder's `.partial`, and how it is put into place.

`.partial/<origin>` of each folder holds its parts, that of the first folder the marks too. When
all is decided the plan is saved there; from then on nothing but the moves is left, each of which
may be the last before a kill: the next run does those that are missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from stagebeam.data import manifest as manifests
from stagebeam.data.manifest import Manifest
from stagebeam.data.parts import Mark, look
from stagebeam.storage import (
    TEMPORARY,
    Place,
    move_files,
    remove_tree,
    sizes,
    write_whole,
)

PARTIAL = ".partial"
_PLAN = "plan.json"


class FolderPlan(BaseModel):
    """What one folder becomes: `parts[i]`, a file among the unfinished ones, is shard i."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parts: tuple[str, ...]
    manifest: Manifest


class Plan(BaseModel):
    """What all folders become, in the order of the layout."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folders: tuple[FolderPlan, ...]


@dataclass(frozen=True, slots=True)
class Work:
    """The unfinished shards of one origin; the folders are absolute, for workers elsewhere."""

    origin: str
    folders: tuple[Place, ...]

    @property
    def places(self) -> tuple[Place, ...]:
        """Where the unfinished files of each folder lie."""
        return tuple(folder / PARTIAL / self.origin for folder in self.folders)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Make the places, clear what other origins and attempts left there.

        An error inside leaves the finished stretches, for the next run; if there are none, it
        leaves nothing.
        """
        paths = [path for folder in self.folders for path in (folder, *folder.parents)]
        made = [path for path in paths if not path.exists()]
        for place in self.places:
            place.mkdir(parents=True, exist_ok=True)
            for left in place.parent.iterdir():
                if left != place:
                    remove_tree(left)
            for left in place.glob(f"*{TEMPORARY}"):
                left.unlink()
        try:
            yield
        except BaseException:
            if not any(self.places[0].glob("mark-*.parquet")):
                self.remove()
                for path in made:
                    with suppress(OSError):  # not empty: not ours to remove
                        path.rmdir()
            raise

    def write_mark(self, number: int, mark: Mark) -> None:
        write_whole(self._mark_path(number), mark.to_bytes())

    def read_mark(self, number: int) -> Mark:
        return Mark.from_bytes(self._mark_path(number).read_bytes())

    def done(self, stretches: int) -> dict[int, int]:
        """Of each stretch that is done, the rows that were read of it; the others have to be done
        (again)."""
        there = [sizes(place) for place in self.places]
        found: dict[int, int] = {}
        for number in range(stretches):
            path = self._mark_path(number)
            if path.name not in there[0]:
                continue
            try:
                parts, rows = look(path)
            except (OSError, pa.ArrowException):  # damaged with its machine
                continue
            if all(there[part.folder].get(part.file) == part.bytes for part in parts):
                found[number] = rows
        return found

    def _mark_path(self, number: int) -> Place:
        return self.places[0] / f"mark-{number:05d}.parquet"

    def save_plan(self, plan: Plan) -> None:
        write_whole(self.places[0] / _PLAN, plan.model_dump_json().encode())

    def plan(self) -> Plan | None:
        """The plan of a run that was killed after it had saved it."""
        try:
            plan = Plan.model_validate_json((self.places[0] / _PLAN).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        for folder, place, planned in zip(self.folders, self.places, plan.folders, strict=True):
            made, moved = sizes(place), sizes(folder)
            for part, shard in zip(planned.parts, planned.manifest.shards, strict=True):
                if shard.bytes not in (made.get(part), moved.get(shard.file)):
                    return None  # someone has removed files since
        return plan

    def finish(self, plan: Plan) -> list[Manifest]:
        """Put everything into place, or what is left of it; each manifest is written last."""
        for folder, place, planned in zip(self.folders, self.places, plan.folders, strict=True):
            _move(planned, place, folder)
        (self.places[0] / _PLAN).unlink()
        self.remove()
        return [planned.manifest for planned in plan.folders]

    def remove(self) -> None:
        """Remove the unfinished files, the marks last."""
        for place in reversed(self.places):
            remove_tree(place)
            with suppress(OSError):
                place.parent.rmdir()


def _move(planned: FolderPlan, place: Place, folder: Place) -> None:
    """While the folder has no manifest it counts as unfinished."""
    (folder / manifests.NAME).unlink(missing_ok=True)
    shards = [shard.file for shard in planned.manifest.shards]
    names = zip(planned.parts, shards, strict=True)
    move_files([(place / part, folder / shard) for part, shard in names])
    for old in folder.glob("part-*.parquet"):
        if old.name not in shards:
            old.unlink()
    if planned.manifest.refused:
        move_files([(place / manifests.REFUSED, folder / manifests.REFUSED)])
    else:
        (folder / manifests.REFUSED).unlink(missing_ok=True)
    manifests.write_manifest(planned.manifest, folder)
