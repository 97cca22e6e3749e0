"""Cells that hold a list as Python writes it: read, and never run."""

from __future__ import annotations

import ast


def listed(text: str) -> list[str] | None:
    """Its members as texts, None where it is no list."""
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return list(map(str, value)) if isinstance(value, list | tuple) else None
