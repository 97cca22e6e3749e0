"""The tracked run of a job that may be interrupted and started again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stagebeam.recipe import Recipe
from stagebeam.tracking import Run, run_id, start_run


@contextmanager
def tracked_run(recipe: Recipe, folder: Path, job_type: str) -> Iterator[Run]:
    """The run whose files lie in `folder`, started or gone on with, which ends with the block.

    Raises as `start_run` does.
    """
    run = start_run(
        recipe.tracking,
        recipe.name,
        recipe.model_dump(mode="json"),
        folder,
        job_type=job_type,
        run_id=run_id(folder),
    )
    try:
        yield run
    finally:
        run.finish()
