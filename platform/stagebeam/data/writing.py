"""From marked parts to finished shards, and the fingerprint of what they were made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack

from stagebeam.data import manifest as manifests
from stagebeam.data.layout import TRAIN_SPLIT, Layout
from stagebeam.data.manifest import Manifest, Shard, read_manifest
from stagebeam.data.parts import Mark, Part, Writer
from stagebeam.data.refusal import Refused
from stagebeam.data.settle import Edits, Stretch, Tally, edit, settle
from stagebeam.data.sources import fingerprint
from stagebeam.data.work import FolderPlan, Plan, Work
from stagebeam.recipe import DataConfig
from stagebeam.records import Example
from stagebeam.storage import Place, place_of, put, scratch_for

_FORM = "2"  # another number where the same sources and settings make other shards than before

EditAll = Callable[[Sequence[tuple[Place, Part, Edits]]], Iterable[tuple[Part, Part]]]


def origin(config: DataConfig, layout: Layout) -> str:
    """Changes with whatever changes the shards: the sources, their content, the checks, the split.

    Raises ValueError if a source is not there.
    """
    settings = config.model_dump_json(
        include={"rows_per_shard", "require_stages", "max_image_pixels", "held_out"}
    )
    text = f"{_FORM} {settings} {layout.train} {layout.others} "
    text += "".join(map(fingerprint, config.sources))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def work_for(config: DataConfig, layout: Layout) -> Work:
    """Where shards of this origin are made; ValueError as `origin` raises it."""
    return Work(origin(config, layout), tuple(folder.absolute() for folder in layout.folders))


def finished(folder: Place, wanted: str) -> Manifest | None:
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
    rows: Iterable[Example | Refused], folder: str | Place, config: DataConfig
) -> Manifest:
    """Write examples, already checked, as shards of `config.rows_per_shard` rows and a manifest.

    Rows of all splits go to this folder, repeated ones too, under names of their own. Shards that
    are there are replaced once all new ones are whole; if `rows` raises, the folder is left as it
    was.

    Raises ValueError if a source of `config` is not there, and if no row can be used.
    """
    layout = Layout((place_of(folder),))
    work = work_for(config, layout)
    with work.opened():
        with Writer(0, TRAIN_SPLIT, config, layout, work.places) as writer:
            for row in rows:
                writer.add(row)
            mark = writer.close()
        plan = conclude(work, [(Stretch("", "", deduplicate=False), mark)], _edit_here)
    return work.finish(plan)[0]


def conclude(work: Work, marks: Iterable[tuple[Stretch, Mark]], edit_all: EditAll) -> Plan:
    """Decide what becomes of the marked rows and save the plan of it.

    `edit_all` writes parts anew, in any order, and gives each old one with the new one.

    Raises ValueError, and leaves nothing, if a folder would have no row.
    """
    refused = [place / manifests.REFUSED for place in work.places]
    scratches = [scratch_for(path) for path in refused]
    with ExitStack() as stack:
        for scratch in scratches:
            stack.callback(scratch.unlink, missing_ok=True)
        files = [stack.enter_context(s.open("w", encoding="utf-8")) for s in scratches]
        tallies = settle(
            marks,
            len(work.folders),
            lambda folder, record: print(
                json.dumps(record, ensure_ascii=False), file=files[folder]
            ),
        )
        for file, scratch, path in zip(files, scratches, refused, strict=True):
            file.close()
            put(scratch, path)
    for folder, tally in zip(work.folders, tallies, strict=True):
        if not tally.sources:
            work.remove()
            raise ValueError(_nothing(folder, tally))
    todo = [
        (work.places[part.folder], part, edits)
        for tally in tallies
        for part, edits in tally.parts
        if edits
    ]
    edited = {(old.folder, old.file): new for old, new in edit_all(todo)}
    plan = Plan(folders=tuple(_planned(work.origin, tally, edited) for tally in tallies))
    work.save_plan(plan)
    return plan


def _planned(origin: str, tally: Tally, edited: dict[tuple[int, str], Part]) -> FolderPlan:
    parts = [edited.get((part.folder, part.file), part) for part, _ in tally.parts]
    shards = [
        Shard(file=f"part-{n:05d}.parquet", rows=p.rows, bytes=p.bytes, sha256=p.sha256)
        for n, p in enumerate(parts)
    ]
    return FolderPlan(parts=tuple(p.file for p in parts), manifest=tally.manifest(origin, shards))


def _nothing(folder: Place, tally: Tally) -> str:
    if not tally.read:
        return f"Nothing for {folder}: no row of the sources falls to it."
    reason = tally.refused[0].reason
    return f"Nothing for {folder}: none of {tally.read} rows is usable; the first refusal: {reason}"


def _edit_here(todo: Sequence[tuple[Place, Part, Edits]]) -> Iterator[tuple[Part, Part]]:
    for place, part, edits in todo:
        yield part, edit(place, part, edits)
