"""Check a recipe before any GPU is taken: `python -m jobs.validate RECIPE [--rows N] [--json]`.

Shards, plan, model, weights, held-out rows, and a sample of rows encoded on the CPU. No Ray, no
GPU, no weights loaded (docs/estimate.md). Exit code 1 if anything is wrong.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.arguments import RecipeFile
from jobs.errors import run_job
from jobs.train import plan_of, required_train
from stagebeam.recipe import load_recipe
from stagebeam.training.check import Checked, check_recipe
from stagebeam.training.sample import Sample

_SHOWN_REFUSALS = 5
_STYLE = {"ok": "green", "wrong": "bold red", "left out": "yellow"}
WRONG = 1  # exit code


def figures(sample: Sample) -> dict[str, Any]:
    """What the sample says of the rows; lengths in tokens."""
    looked = len(sample.lengths) + len(sample.refused)
    return {
        "rows": looked,
        "of": sample.of,
        "refused": len(sample.refused),
        "mean_length": float(sample.lengths.mean()),
        "median_length": float(np.median(sample.lengths)),
        "length_of_95_percent": int(sample.lengths[sample.row_at(0.95)]),
        "longest": int(sample.lengths.max()),
        "padding": sample.padding,
        "tokens_with_loss": float(sample.learnt.mean()),
        "images": float(sample.images.mean()),
        "tiles": float(sample.tiles.mean()),
    }


def _checks(name: str, checked: Checked) -> Table:
    table = Table("check", "", "what was found", title=name, title_justify="left")
    for check in checked.checks:
        status = Text(check.status, style=_STYLE[check.status])
        table.add_row(check.name, status, Text(check.says))
    return table


def _sample(sample: Sample) -> Table:
    found = figures(sample)
    table = Table("row", "", title="Sampled rows", title_justify="left")
    table.add_row("mean, median length", f"{found['mean_length']:.1f}, {found['median_length']:g}")
    lengths = f"{found['length_of_95_percent']}, {found['longest']}"
    table.add_row("95 % are at most, the longest", lengths)
    table.add_row("padding in the plan's batches", f"{found['padding']:.1%}")
    table.add_row("tokens with loss", f"{found['tokens_with_loss']:.1f}")
    table.add_row("images, tiles", f"{found['images']:.2f}, {found['tiles']:.2f}")
    return table


def show(name: str, checked: Checked, console: Console) -> None:
    """Print the checks, the sample and the first reasons why rows were refused."""
    console.print(_checks(name, checked))
    if checked.sample is not None:
        console.print(_sample(checked.sample))
        reasons = Counter(checked.sample.refused.values()).most_common(_SHOWN_REFUSALS)
        for reason, count in reasons:
            console.print(f"  refused {count}: {reason}", markup=False, highlight=False)


def as_json(checked: Checked) -> dict[str, Any]:
    """The same for machines."""
    sample = checked.sample
    return {
        "ok": checked.ok,
        "checks": [{"name": c.name, "status": c.status, "says": c.says} for c in checked.checks],
        "sample": None if sample is None else {**figures(sample), "reasons": sample.refused},
    }


def main(
    recipe: RecipeFile,
    rows: Annotated[int, typer.Option(min=0, help="Rows to encode; 0 is all of them.")] = 256,
    as_json_text: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a recipe against its shards and its model."""

    def job() -> bool:
        # no GPU is touched; it also keeps DeepSpeed from saying what it found, on stdout
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        loaded = load_recipe(recipe)
        train = required_train(loaded)
        checked = check_recipe(
            loaded, train, lambda: plan_of(train, loaded.data, loaded.seed), rows
        )
        if as_json_text:
            print(json.dumps(as_json(checked)))
        else:
            show(loaded.name, checked, Console())
        return checked.ok

    if not run_job(job):
        raise SystemExit(WRONG)


if __name__ == "__main__":
    typer.run(main)
