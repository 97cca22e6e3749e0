"""Write a recipe's sources as shards: `python -m jobs.prepare RECIPE [--fresh] [--check]`.

Rows are read, drawn and checked by Ray Data tasks, a stretch of a source each; this process writes
them in the sources' order. Sources of the split `train` go to `data.shards`, the others to
`evaluation.shards` where the recipe has an evaluation, else to `data.shards` as well.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import ray.data
import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TaskID, TimeElapsedColumn
from rich.table import Table

from jobs.cluster import ray_session
from jobs.errors import run_job
from stagebeam.data.shards import Manifest, finished, origin, survey, write_shards
from stagebeam.data.sources import Span, read_span, spans
from stagebeam.data.stream import TRAIN_SPLIT
from stagebeam.data.validate import Refused, validated
from stagebeam.recipe import DataConfig, LlavaCotSource, Recipe, Source, load_recipe
from stagebeam.records import Example

OnProgress = Callable[[Path, int, int], None]

_SPAN_ROWS = 128  # rows that one task reads and holds
_SHOWN_REFUSALS = 10


def folders(recipe: Recipe) -> dict[Path, DataConfig]:
    """Which sources go where: the data section narrowed to the sources of each folder.

    Raises ValueError if the recipe has no sources.
    """
    if not recipe.data.sources:
        raise ValueError(f"The recipe {recipe.name} has no data.sources to prepare.")
    sources: dict[Path, list[Source]] = {}
    for source in recipe.data.sources:
        held_out = recipe.evaluation if source.split != TRAIN_SPLIT else None
        folder = recipe.data.shards if held_out is None else held_out.shards
        sources.setdefault(folder, []).append(source)
    return {
        folder: recipe.data.model_copy(update={"shards": folder, "sources": tuple(some)})
        for folder, some in sources.items()
    }


def prepared(recipe: Recipe) -> dict[Path, Manifest | None]:
    """The manifest of each folder that already is as the recipe wants it, None for the others.

    Raises ValueError if a source is not there, or if a folder holds shards of other settings.
    """
    return {folder: finished(folder, origin(config)) for folder, config in folders(recipe).items()}


def prepare(
    recipe: Recipe, *, fresh: bool = False, on_progress: OnProgress | None = None
) -> dict[Path, Manifest]:
    """Write the shards of every folder, in a Ray session that is already there.

    A folder that is as the recipe wants it is left alone unless `fresh` is set. `on_progress` is
    called with a folder, the rows read for it so far, and the rows that there are.

    Raises ValueError as `prepared` does, before anything is written, and if the sources of a
    folder give no usable row.
    """
    if not fresh:
        prepared(recipe)
    manifests = {}
    for folder, config in folders(recipe).items():
        rows, report = _read(folder, config, on_progress)
        manifests[folder] = write_shards(rows, folder, config, fresh=fresh, on_progress=report)
    return manifests


def check(recipe: Recipe, *, on_progress: OnProgress | None = None) -> dict[Path, Manifest]:
    """Read and check every row as `prepare` does, and write nothing; the manifests have no shards.

    Raises ValueError if a source is not there.
    """
    manifests = {}
    for folder, config in folders(recipe).items():
        rows, report = _read(folder, config, on_progress)
        manifests[folder] = survey(rows, config, on_progress=report)
    return manifests


def _read(
    folder: Path, config: DataConfig, on_progress: OnProgress | None
) -> tuple[Iterator[Example | Refused], Callable[[int], None]]:
    """The checked rows of a folder's sources in order, and what is to be told of each."""
    stretches = [s for source in config.sources for s in spans(_absolute(source), _SPAN_ROWS)]
    total = sum(span.rows for span in stretches)

    def report(done: int) -> None:
        if on_progress is not None:
            on_progress(folder, done, total)

    return _checked_rows(stretches, config), report


def _checked_rows(stretches: list[Span], config: DataConfig) -> Iterator[Example | Refused]:
    """Nothing runs before the first row is asked for."""
    if not stretches:
        return

    def read(batch: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        span = stretches[int(batch["span"][0])]
        return {"rows": [pickle.dumps(list(validated(read_span(span), config)))]}

    numbers = [{"span": number} for number in range(len(stretches))]
    units = ray.data.from_items(numbers, override_num_blocks=len(numbers))
    dataset = units.map_batches(read, batch_size=1, num_cpus=1)
    dataset.context.execution_options.preserve_order = True
    for row in dataset.iter_rows():
        yield from pickle.loads(row["rows"])


def _absolute(source: Source) -> Source:
    """Workers may run in another folder than this process."""
    if not isinstance(source, LlavaCotSource):
        return source
    paths = {
        "annotations": source.annotations.absolute(),
        "image_root": source.image_root.absolute(),
    }
    return source.model_copy(update=paths)


def _run(path: Path, fresh: bool, only_check: bool) -> None:
    recipe = load_recipe(path)
    console = Console()
    if only_check:
        folders(recipe)
        with ray_session(), _progress_bars() as on_progress:
            _show(check(recipe, on_progress=on_progress), console)
        return
    # Before Ray starts: a mistake is told at once, and finished work needs no cluster.
    there = {} if fresh else prepared(recipe)
    manifests = {folder: m for folder, m in there.items() if m is not None}
    if len(manifests) < len(folders(recipe)):
        with ray_session(), _progress_bars() as on_progress:
            manifests = prepare(recipe, fresh=fresh, on_progress=on_progress)
    _show(manifests, console)


@contextmanager
def _progress_bars() -> Iterator[OnProgress]:
    """A bar for each folder, on stderr."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bars: dict[Path, TaskID] = {}

        def report(folder: Path, done: int, total: int) -> None:
            if folder not in bars:
                bars[folder] = progress.add_task(folder.name, total=total)
            progress.update(bars[folder], completed=done)

        yield report


def _show(manifests: Mapping[Path, Manifest], console: Console) -> None:
    for folder, manifest in manifests.items():
        table = Table("source", "rows", title=str(folder), title_justify="left")
        for source, rows in manifest.sources.items():
            table.add_row(source, str(rows))
        table.add_section()
        table.add_row("together", str(manifest.rows))
        table.add_row("refused", str(len(manifest.refused)))
        console.print(table)
        # A reason names the row's own file or turn, so equal reasons are rare: show some.
        for refusal in manifest.refused[:_SHOWN_REFUSALS]:
            console.print(f"  {refusal.id}: {refusal.reason}", markup=False, highlight=False)
        if len(manifest.refused) > _SHOWN_REFUSALS:
            console.print(f"  ... and {len(manifest.refused) - _SHOWN_REFUSALS} more")


def main(
    recipe: Annotated[Path, typer.Argument(help="Recipe file.")],
    fresh: Annotated[bool, typer.Option(help="Write the shards again if they are there.")] = False,
    check: Annotated[bool, typer.Option(help="Read and check every row, write nothing.")] = False,
) -> None:
    """Write the sources of a recipe as shards."""
    run_job(lambda: _run(recipe, fresh, check))


if __name__ == "__main__":
    typer.run(main)
