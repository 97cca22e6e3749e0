"""Recipes of sources alone, and what became of them on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

import yaml


def write_preparation(
    folder: Path, *sources: dict[str, object], evaluated: bool = True, **data: object
) -> Path:
    """A recipe with these sources, its shards in `folder/train` and, where it is to be evaluated,
    `folder/test`; `data` are further settings of that section."""
    recipe: dict[str, object] = {
        "name": "small",
        "model": {"path": "unused"},
        "data": {"shards": str(folder / "train"), "sources": list(sources), **data},
    }
    if evaluated:
        recipe["evaluation"] = {
            "output_dir": str(folder / "report"),
            "shards": str(folder / "test"),
        }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def scenes(rows: int, **changes: object) -> dict[str, object]:
    return {"kind": "scenes", "rows": rows, **changes}


def hashes(*folders: Path) -> dict[str, str]:
    """Of every file, by the name of its folder and its own."""
    return {
        f"{folder.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in folder.iterdir()
        if path.is_file()
    }
