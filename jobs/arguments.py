"""Command-line arguments that several jobs take."""

from __future__ import annotations

from typing import Annotated

import typer

RecipeFile = Annotated[str, typer.Argument(help="Recipe file (YAML), or its URL.")]
