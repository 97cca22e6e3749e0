"""`report.md`: the figures of the report for a terminal, a pull request or a diff."""

from __future__ import annotations

from collections.abc import Sequence

from stagebeam.evaluation.report_tables import (
    card_tables,
    categories_table,
    comparisons_table,
    equal_tokens_table,
    fallbacks_table,
    methods_table,
    repeat_tables,
)
from stagebeam.evaluation.results import Repeat, Results
from stagebeam.evaluation.tables import Table, escape, fenced, markdown


def report_markdown(results: Results, paper: Sequence[Table], recipe: str) -> str:
    """The whole report but its plots and traces. `recipe` is its YAML."""
    found: list[Table | None] = [
        methods_table(results),
        fallbacks_table(results),
        categories_table(results),
        comparisons_table("Against greedy", results.against_greedy),
        comparisons_table("Stage beam and retracing against the others", results.comparisons),
        equal_tokens_table(results),
        *(card_tables(results.judge) if results.judge else ()),
    ]
    parts = [
        f"# {escape(results.name)}\n",
        f"Stagebeam report, {results.created}, {results.greedy.questions} held-out questions.\n",
        f"> {escape(results.claim)}\n",
        *(markdown(table) for table in found if table is not None),
    ]
    if paper:
        parts.append("## Beside the paper\n")
        parts += [markdown(table, 3) for table in paper]
    if results.repeat is not None:
        parts.append(_repeat(results.repeat, recipe))
    return "\n".join(parts)


def _repeat(repeat: Repeat, recipe: str) -> str:
    parts = [
        "## Repeat it\n",
        f"In {escape(repeat.directory)}; the recipe is below and in `recipe.yaml`:\n",
        fenced(repeat.command, "bash"),
        *(markdown(table, 3) for table in repeat_tables(repeat)),
        "### Recipe\n",
        fenced(recipe, "yaml"),
    ]
    return "\n".join(parts)
