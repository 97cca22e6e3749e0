"""What a benchmark leaves behind."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich.console import Console


def write_figures(measured: Any, output: Path, console: Console) -> None:
    """Print a dataclass of figures, and write it as JSON."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(TypeAdapter(type(measured)).dump_json(measured, indent=1))
    console.print(asdict(measured))
    console.print(f"Figures: {output}", soft_wrap=True)
