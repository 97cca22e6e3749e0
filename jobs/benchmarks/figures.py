"""What a benchmark leaves behind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich.console import Console


def write_figures(
    measured: Any, output: Path, console: Console, shown: Iterable[Any] | None = None
) -> None:
    """Print a dataclass of figures (or what is to be `shown` of it), and write it as JSON."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(TypeAdapter(type(measured)).dump_json(measured, indent=1))
    for piece in [asdict(measured)] if shown is None else shown:
        console.print(piece)
    console.print(f"Figures: {output}", soft_wrap=True)
