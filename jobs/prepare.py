"""Write a recipe's sources as shards: `python -m jobs.prepare RECIPE [--fresh] [--check]`.

Each stretch of a source is one Ray Data task, which reads, checks and writes its rows; only counts
come back. What concerns all rows (duplicates, names) is decided here, from the tasks' marks, and
then the files are put into place. A run that was killed is continued by the next one.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import ray.data
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.arguments import RecipeFile
from jobs.cluster import ray_session
from jobs.errors import run_job
from jobs.progress import StepBar
from stagebeam.data.layout import Layout
from stagebeam.data.manifest import Manifest
from stagebeam.data.parts import Mark, Part, Writer
from stagebeam.data.settle import Edits, Stretch, edit, settle
from stagebeam.data.sources import Span, absolute, read_span, spans
from stagebeam.data.validate import rules, validated
from stagebeam.data.work import Work
from stagebeam.data.writing import conclude, finished, origin, work_for
from stagebeam.recipe import DataConfig, Recipe, load_recipe
from stagebeam.storage import Place

# Rows read so far, and all that there are if that is known.
OnProgress = Callable[[int, int | None], None]

_REPORT_ROWS = 128


def _begun(recipe: Recipe) -> tuple[Layout, Work]:
    """Where everything goes. It reads the sources' annotation files, which may take a while.

    Raises ValueError if the recipe has no sources or one is not there.
    """
    layout = Layout.of(recipe)
    return layout, work_for(recipe.data, layout)


def _ready(layout: Layout, work: Work, fresh: bool) -> dict[Place, Manifest] | None:
    """The manifest of each folder, if no source has to be read for it: the shards are there, or a
    run was killed when only moving them was left, which is then done. Needs no Ray.

    Raises ValueError, unless `fresh` is set, if a folder holds shards of other settings.
    """
    if (plan := work.plan()) is not None:
        return _by_folder(layout, work.finish(plan))
    if fresh:
        return None
    there = {folder: finished(folder, work.origin) for folder in layout.folders}
    whole = {folder: manifest for folder, manifest in there.items() if manifest is not None}
    return whole if len(whole) == len(there) else None


def prepare(
    recipe: Recipe, *, fresh: bool = False, on_progress: OnProgress | None = None
) -> dict[Place, Manifest]:
    """Write the shards of every folder, in a Ray session that is already there.

    What is as the recipe wants it is left alone unless `fresh` is set. What an earlier run of the
    same recipe and sources has finished is not done again.

    Raises ValueError, before anything is written, if the recipe has no sources or one is not
    there, or unless `fresh` is set, if a folder holds shards of other settings; and later, if a
    source turns out to be wrong while it is read, or a folder would get no row.
    """
    layout, work = _begun(recipe)
    there = _ready(layout, work, fresh)
    return _made(recipe.data, layout, work, on_progress) if there is None else there


def _made(
    data: DataConfig, layout: Layout, work: Work, on_progress: OnProgress | None
) -> dict[Place, Manifest]:
    """The shards as the tasks and the decision over all of them make them."""
    with work.opened():
        stretches = _stretches(data)
        done = work.done(len(stretches))
        bar = _Rows(stretches, sum(done.values()), on_progress)
        todo = [n for n in range(len(stretches)) if n not in done]
        for rows, _ in _run_all(todo, _ReadSpan(stretches, data, layout, work)):
            bar.add(rows)
        marks = ((_about(s), work.read_mark(n)) for n, s in enumerate(stretches))
        plan = conclude(work, marks, _edit_all)
    return _by_folder(layout, work.finish(plan))


def check(recipe: Recipe, *, on_progress: OnProgress | None = None) -> dict[Place, Manifest]:
    """Read and check every row as `prepare` does, and write nothing; the manifests have no shards.

    Raises ValueError if a source is not there or turns out to be wrong.
    """
    layout, data = Layout.of(recipe), recipe.data
    wanted = origin(data, layout)
    stretches = _stretches(data)
    bar = _Rows(stretches, 0, on_progress)
    marks: dict[int, bytes] = {}
    todo = range(len(stretches))
    for rows, made in _run_all(todo, _ReadSpan(stretches, data, layout, None)):
        bar.add(rows)
        marks.update(made)
    told = ((_about(s), Mark.from_bytes(marks[n])) for n, s in enumerate(stretches))
    tallies = settle(told, len(layout.folders))
    return _by_folder(layout, [tally.manifest(wanted, ()) for tally in tallies])


def _by_folder(layout: Layout, manifests: Iterable[Manifest]) -> dict[Place, Manifest]:
    return dict(zip(layout.folders, manifests, strict=True))


def _stretches(data: DataConfig) -> list[Span[Any]]:
    return [s for source in data.sources for s in spans(absolute(source), data.rows_per_shard)]


def _about(span: Span[Any]) -> Stretch:
    source = span.source
    places = source.model_dump(mode="json", include={"annotations", "file", "path", "shards"})
    return Stretch(source.kind, next(iter(places.values()), ""), source.deduplicate)


class _Rows:
    """Counts rows as they are read, for whoever watches."""

    def __init__(self, stretches: list[Span[Any]], done: int, tell: OnProgress | None) -> None:
        known = [span.rows for span in stretches if span.rows is not None]
        self._total = sum(known) if len(known) == len(stretches) else None
        self._done, self._tell = done, tell

    def add(self, rows: int) -> None:
        self._done += rows
        if rows and self._tell is not None:
            self._tell(self._done, self._total)


@dataclass(frozen=True, slots=True)
class _ReadSpan:
    """Makes the mark of a stretch. It may run twice, or be killed and run again: files get their
    names when they are whole, and are the same each time.

    `work` says where to write; None writes nothing and sends the mark back.
    """

    stretches: Sequence[Span[Any]]
    data: DataConfig
    layout: Layout
    work: Work | None

    def __call__(self, number: int) -> Iterator[tuple[int, bytes]]:
        """The rows read since it last told, and in the end the mark."""
        span = self.stretches[number]
        places = None if self.work is None else self.work.places
        rows = 0
        with Writer(number, span.source.split, self.data, self.layout, places) as writer:
            for row in validated(read_span(span), rules(self.data, span.source)):
                writer.add(row)
                rows += 1
                if rows % _REPORT_ROWS == 0:
                    yield _REPORT_ROWS, b""
            mark = writer.close()
        if self.work is None:
            yield rows % _REPORT_ROWS, mark.to_bytes()
        else:
            self.work.write_mark(number, mark)
            yield rows % _REPORT_ROWS, b""


def _run_all(
    numbers: Iterable[int], task: Callable[[int], Iterator[tuple[int, bytes]]]
) -> Iterator[tuple[int, dict[int, bytes]]]:
    """What the task of each number yields, as it comes; a mark with its number.

    Raises the ValueError that a task raised.
    """

    def run(batch: dict[str, np.ndarray]) -> Iterator[dict[str, list[Any]]]:
        number = int(batch["number"][0])
        try:
            for rows, sent in task(number):
                yield {"number": [number], "rows": [rows], "sent": [sent], "error": [""]}
        except ValueError as error:
            # Sent, not raised: Ray Data would log it at length and wrap it.
            yield {"number": [number], "rows": [0], "sent": [b""], "error": [str(error)]}

    items = [{"number": number} for number in numbers]
    if not items:
        return
    units = ray.data.from_items(items, override_num_blocks=len(items))
    dataset = units.map_batches(run, batch_size=1, num_cpus=1)
    dataset.context.target_max_block_size = 1  # each row by itself, when it is made
    for row in dataset.iter_rows():
        if row["error"]:
            raise ValueError(row["error"])
        yield row["rows"], {row["number"]: row["sent"]} if row["sent"] else {}


def _edit_all(todo: Sequence[tuple[Place, Part, Edits]]) -> Iterator[tuple[Part, Part]]:
    def write(number: int) -> Iterator[tuple[int, bytes]]:
        yield 0, pickle.dumps(edit(*todo[number]))

    for _, made in _run_all(range(len(todo)), write):
        for number, part in made.items():
            yield todo[number][1], pickle.loads(part)


def _run(path: str, fresh: bool, only_check: bool) -> None:
    recipe = load_recipe(path)
    console = Console()
    if only_check:
        origin(recipe.data, Layout.of(recipe))
        with ray_session(), StepBar(Console(stderr=True), "rows", None) as bar:
            manifests = check(recipe, on_progress=bar.count)
    else:
        # Before Ray starts: a mistake is told at once, and finished work needs no cluster.
        layout, work = _begun(recipe)
        there = _ready(layout, work, fresh)
        if there is None:
            with ray_session(), StepBar(Console(stderr=True), "rows", None) as bar:
                there = _made(recipe.data, layout, work, bar.count)
        manifests = there
    _show(manifests, console)


def _show(manifests: Mapping[Place, Manifest], console: Console) -> None:
    for folder, manifest in manifests.items():
        counts = Table("source", "rows", title=str(folder), title_justify="left")
        for source, rows in manifest.sources.items():
            counts.add_row(source, str(rows))
        counts.add_section()
        counts.add_row("usable", str(manifest.rows))
        counts.add_row("refused", str(len(manifest.refused)))
        counts.add_section()
        counts.add_row("read", str(manifest.read))
        console.print(counts)
        if manifest.refused:
            console.print(_faults(manifest))


def _faults(manifest: Manifest) -> Table:
    """How many rows have each fault, and the first of them."""
    table = Table("fault", "rows", "for example")
    for fault, rows in sorted(manifest.faults.items(), key=lambda item: -item[1]):
        first = next(refusal for refusal in manifest.refused if refusal.fault == fault)
        table.add_row(fault, str(rows), Text(f"{first.id}: {first.reason}"))
    return table


def main(
    recipe: RecipeFile,
    fresh: Annotated[bool, typer.Option(help="Write the shards again if they are there.")] = False,
    check: Annotated[bool, typer.Option(help="Read and check every row, write nothing.")] = False,
) -> None:
    """Write the sources of a recipe as shards."""
    run_job(lambda: _run(recipe, fresh, check))


if __name__ == "__main__":
    typer.run(main)
