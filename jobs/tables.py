"""The paper's tables beside ours: `python -m jobs.tables RUN_DIR... [--output FILE]`.

Each folder is an evaluation's; runs are named by their recipes. With the recipes of the paper's
ablations (base, direct, untagged, stages) the second table is that ablation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.errors import run_job
from stagebeam.evaluation.paper_tables import paper_tables, read_run
from stagebeam.evaluation.tables import markdown


def main(
    runs: Annotated[list[Path], typer.Argument(help="Output folders of evaluations.")],
    output: Annotated[
        Path | None, typer.Option(help="Markdown file to write; without it, print.")
    ] = None,
) -> None:
    """Write the paper's tables with the figures of these evaluations beside the published ones."""

    def job() -> None:
        text = "\n".join(markdown(table) for table in paper_tables([read_run(r) for r in runs]))
        if output is None:
            typer.echo(text, nl=False)
        else:
            output.write_text(text, encoding="utf-8")

    run_job(job)


if __name__ == "__main__":
    typer.run(main)
