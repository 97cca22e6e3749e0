"""What a recipe asks of a cluster beside machines: variables with keys, and paths that all see."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from stagebeam.cluster.config import Storage
from stagebeam.cluster.sizing import Work, engines
from stagebeam.recipe import Recipe
from stagebeam.storage import RemotePath

WANDB_KEY = "WANDB_API_KEY"  # as `stagebeam.tracking` reads it
_TRACKED: tuple[Work, ...] = ("train", "evaluate")
# The sections that name what a job reads and writes.
_SECTIONS: dict[Work, tuple[str, ...]] = {
    "prepare": ("data",),
    "annotate": ("annotate",),
    "train": ("model", "data", "train"),
    "evaluate": ("evaluation", "search", "serve"),
    "serve": ("search", "serve"),
}


def keys(work: Work, recipe: Recipe) -> dict[str, bool]:
    """Variables with keys that this work reads, by name; True where it cannot do without."""
    found: dict[str, bool] = {}
    if work in _TRACKED and recipe.tracking.enabled:
        found[WANDB_KEY] = recipe.tracking.mode == "online"
    if work == "annotate" and recipe.annotate is not None:
        for endpoint in (recipe.annotate.teacher, recipe.annotate.checker):
            if endpoint is not None:
                found[endpoint.api_key_env] = False  # a server may ask for none
    if work in ("evaluate", "serve") and recipe.serve is not None:
        for engine in engines(recipe.serve).values():
            if engine.server is not None:
                found[engine.server.api_key_env] = False
        if recipe.serve.keys is not None:
            found |= dict.fromkeys(recipe.serve.keys.env, True)
    return found


def check_paths(work: Work, recipe: Recipe, storage: Storage) -> None:
    """Raises ValueError where the work reads or writes what only one node would have."""
    lost = [
        f"{name} {path}"
        for section in _SECTIONS[work]
        for name, path in _paths(getattr(recipe, section), section)
        if not storage.holds(path)
    ]
    if lost:
        places = " or ".join(filter(None, (storage.mount_path, *storage.urls)))
        raise ValueError(
            f"The paths of the recipe '{recipe.name}' must lie under {places}, which all nodes "
            f"see; these do not: {', '.join(lost)}."
        )


def _paths(value: object, name: str) -> Iterator[tuple[str, str]]:
    """Paths and model folders below a section, by their dotted names."""
    if isinstance(value, Path | RemotePath):
        yield name, str(value)
    elif isinstance(value, BaseModel):
        for field in type(value).model_fields:
            yield from _paths(getattr(value, field), f"{name}.{field}")
        yield from _model(value, name)
    elif isinstance(value, tuple):
        for number, item in enumerate(value):
            yield from _paths(item, f"{name}.{number}")


def _model(section: BaseModel, name: str) -> Iterator[tuple[str, str]]:
    """A model's folder; a hub name has one slash at most, and a server's name is no path."""
    if getattr(section, "server", None) is not None:
        return
    for field in ("path", "model"):
        folder = getattr(section, field, None)
        if isinstance(folder, str) and (folder.count("/") > 1 or folder.startswith(("/", "."))):
            yield f"{name}.{field}", folder
