"""What goes to the cluster with a job: a clone's files, and the recipe wherever it lies."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from stagebeam.recipe import Recipe

RUNTIME_ENV = Path("cluster", "runtime_env.yaml")
FOLDER = "submitted"  # in the shipped folder: the recipe
# Ray leaves the first two out by itself, and warns of it each time.
_LEFT = {".git", ".venv", FOLDER}


@dataclass(frozen=True)
class Shipment:
    """What the head is given."""

    command: str  # that runs in the shipped folder, by the head's shell
    runtime_env: Mapping[str, Any]  # its `working_dir` is a local folder, which Ray uploads


@contextmanager
def shipment(
    job: str, path: Path, recipe: Recipe, arguments: Sequence[str], clone: Path
) -> Iterator[Shipment]:
    """The job as it is handed over; the folder is there until the end of the context.

    The recipe, which was read from `path`, goes along as one file, whatever it extends. So it may
    lie anywhere, also where the clone's files are not shipped from.

    Raises ValueError where the folder is no clone.
    """
    settings = runtime_env(clone)
    with TemporaryDirectory(prefix="stagebeam-submit-") as name:
        folder = Path(name)
        # Ray packs what the links lead to, by the rules that hold for the clone.
        for entry in clone.resolve().iterdir():
            if entry.name not in _LEFT:
                (folder / entry.name).symlink_to(entry)
        shipped = Path(FOLDER, path.name)
        (folder / FOLDER).mkdir()
        (folder / shipped).write_text(recipe.to_yaml(), encoding="utf-8")
        command = ["python", "-m", f"jobs.{job}", shipped.as_posix(), *arguments]
        yield Shipment(shlex.join(command), {**settings, "working_dir": name})


def runtime_env(clone: Path) -> dict[str, Any]:
    """The clone's runtime environment. Raises ValueError where it has none."""
    try:
        loaded = yaml.safe_load((clone / RUNTIME_ENV).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{clone} has no {RUNTIME_ENV}: name a clone of Stagebeam by --working-dir."
        ) from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{clone / RUNTIME_ENV} must be a mapping.")
    return loaded


def relative_paths(recipe: Recipe) -> list[str]:
    """The recipe's settings that name a path below the current folder, such as `data.shards`."""
    return [
        name
        for name, value in _leaves(recipe.model_dump(exclude_unset=True), "")
        if isinstance(value, Path) and not value.is_absolute() and "://" not in str(value)
    ]


def _leaves(value: object, name: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{name}.{number}")
    else:
        yield name, value
