"""Files for `serve deploy`, and for a RayService's `serveConfigV2`, derived from recipes.

`python -m serve.deploy_config jobs/recipes/*.yaml` writes `serve/config/<recipe>.yaml`. Such a file
names the recipe and where to listen; all that Serve is told about the deployments follows from the
recipe when the application is built.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from serve.app import APP, required_serve
from serve.logs import LOGGING
from stagebeam.recipe import Recipe, load_recipe

FOLDER = Path(__file__).parent / "config"
# Proxies of a cluster are asked from other machines, at a port that somebody has written down.
_HOST, _PORT = "0.0.0.0", 8000


def deploy_config(recipe: Recipe, path: Path | str) -> dict[str, Any]:
    """Of a recipe that the cluster's nodes find at `path`. Raises ValueError where it has no
    `serve` section."""
    config = required_serve(recipe)
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": _HOST, "port": config.port or _PORT},
        "logging_config": {"encoding": LOGGING.encoding},
        "applications": [
            {
                "name": APP,
                "route_prefix": "/",
                "import_path": "serve.app:app_from_recipe",
                "args": {"recipe": str(path)},
            }
        ],
    }


def written(recipe: Path) -> str | None:
    """The file's text; None of a recipe without a `serve` section."""
    loaded = load_recipe(recipe)
    if loaded.serve is None:
        return None
    config = deploy_config(loaded, recipe)
    made = f"# Made from {recipe} by `python -m serve.deploy_config {recipe}`.\n"
    return made + yaml.safe_dump(config, sort_keys=False)


def main(recipes: list[str]) -> None:
    """Write the files of those recipes that are served."""
    for recipe in map(Path, recipes):
        text = written(recipe)
        if text is not None:
            (FOLDER / recipe.name).write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
