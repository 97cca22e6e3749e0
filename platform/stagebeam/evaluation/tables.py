"""A table as it stands in every form of the report: Markdown here, HTML by the page's template."""

from __future__ import annotations

import re
from dataclasses import dataclass

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~&])")


@dataclass(frozen=True, slots=True)
class Table:
    """Cells are plain text. `note` says how to read it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.title


def markdown(table: Table, level: int = 2) -> str:
    """A heading, the table and its note. What a cell says is never read as markup."""
    lines = [
        f"{'#' * level} {escape(table.title)}",
        "",
        _line(table.columns),
        "|" + "---|" * len(table.columns),
        *map(_line, table.rows),
    ]
    if table.note:
        lines += ["", escape(table.note)]
    return "\n".join(lines) + "\n"


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(map(escape, cells))} |"


def escape(text: str) -> str:
    """Text for a Markdown line."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))


def fenced(text: str, language: str = "") -> str:
    """A block of Markdown that shows `text` as it is, whatever fences it holds itself."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"
