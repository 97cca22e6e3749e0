"""Predict what a recipe's training will take: `python -m jobs.estimate RECIPE`.

Memory of a rank by part, steps, tokens, hours and checkpoint sizes, from the model's config and a
sample of the shards. No Ray, no GPU, no weights (docs/estimate.md).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from jobs.arguments import RecipeFile
from jobs.errors import run_job
from jobs.train import plan_of, required_train
from stagebeam.data.manifest import NAME
from stagebeam.recipe import load_recipe
from stagebeam.training.estimate import BatchMemory, Estimate, as_json, estimate

_GIB = 2**30
_WHEN = {
    "held": "always",
    "kept": "forward to backward",
    "logits": "begin of backward",
    "recomputed": "in backward",
    "step": "optimiser's step",
}


def _size(size: float) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size / 1024:.1f} KiB" if size else ""


def _memory(batch: BatchMemory, rows: int, devices_memory: float | None) -> Table:
    title = f"Memory of a rank (predicted): {rows} rows, {batch.rows}, {batch.tokens} tokens"
    table = Table("part", "when", "device", "host", title=title, title_justify="left")
    for part in batch.memory.parts:
        if part.device or part.host:
            table.add_row(part.name, _WHEN[part.phase], _size(part.device), _size(part.host))
    table.add_section()
    peak, host = batch.memory.peak, batch.memory.host
    table.add_row("peak", "", _size(peak), _size(host), style="bold")
    if devices_memory is not None:
        share = peak / (devices_memory * _GIB)
        verdict = "does not fit" if share > 1 else "tight" if share > 0.9 else "fits"
        table.add_row(f"{verdict} in {devices_memory:g} GiB", "", f"{share:.0%}", "")
    return table


def _pairs(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    table = Table("what", "predicted", title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table


def _parameters(made: Estimate) -> Table:
    table = Table("group", "parameters", "trained", title="Parameters", title_justify="left")
    for group, count in made.parameters.items():
        table.add_row(group, f"{count:,}", f"{made.trained[group]:,}")
    table.add_section()
    table.add_row("all", f"{sum(made.parameters.values()):,}", f"{sum(made.trained.values()):,}")
    return table


def _work(made: Estimate) -> Iterable[tuple[str, str]]:
    work = made.work
    if work.steps is None:
        yield "steps", "not known without shards"
    else:
        yield "steps", f"{work.steps:,}"
    if work.rows is not None and work.learnt_a_row is not None:
        yield "rows an epoch, epochs", f"{work.rows:,} x {work.epochs}"
        yield "tokens an epoch", f"{work.rows * work.tokens_a_row:.3g}"
        yield "of which with loss", f"{work.rows * work.learnt_a_row:.3g}"
    for group, flops in work.forward_flops.items():
        yield f"forward TFLOP a step: {group}", f"{flops / 1e12:.4g}"
    yield "training TFLOP a step", f"{work.model_flops / 1e12:.4g}"
    yield "with what is computed again", f"{work.hardware_flops / 1e12:.4g}"
    if (time := made.duration) is not None:
        yield (
            f"hours at an assumed MFU of {time.mfu:g}, {time.devices} x {time.tflops:g} TFLOP/s",
            f"{time.hours:.3g} (from {time.low:.3g} to {time.high:.3g})",
        )
    else:
        yield "hours", "give --tflops or train.peak_tflops, and shards or train.max_steps"


def _disk(made: Estimate) -> Iterable[tuple[str, str]]:
    disk = made.disk
    yield "a checkpoint", f"{_size(disk.checkpoint)} ({_size(disk.checkpoint_a_rank)} a rank)"
    yield f"the {disk.kept} kept", _size(disk.kept * disk.checkpoint)
    yield "exported model", _size(disk.export)


def show(made: Estimate, console: Console, devices_memory: float | None) -> None:
    """Print the tables of a prediction."""
    console.print(f"[bold]{made.name}[/bold]: everything here is predicted, nothing was measured.")
    if made.sample is None:
        console.print("There are no shards: each row is taken to have max_length tokens, an image.")
    console.print(_parameters(made))
    for batch in made.batches:
        console.print(_memory(batch, made.micro_batch, devices_memory))
    console.print(_pairs("Work", _work(made)))
    console.print(_pairs("Disk", _disk(made)))


def main(
    recipe: RecipeFile,
    devices_memory: Annotated[
        float | None, typer.Option(min=0.1, help="Memory of a device, GiB: says whether it fits.")
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(min=0.001, help="Dense peak of a device, TFLOP/s; else train.peak_tflops."),
    ] = None,
    mfu: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of the peak that is reached; assumed.")
    ] = 0.35,
    rows: Annotated[int, typer.Option(min=0, help="Rows to sample; 0 is all of them.")] = 256,
    as_json_text: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Predict memory, time and disk of a recipe's training."""

    def job() -> None:
        # no GPU is touched; it also keeps DeepSpeed from saying what it found, on stdout
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        loaded = load_recipe(recipe)
        train = required_train(loaded)
        there = (loaded.data.shards / NAME).exists()
        plan = plan_of(train, loaded.data, loaded.seed) if there else None
        made = estimate(loaded, train, plan, rows=rows, tflops=tflops, mfu=mfu)
        if as_json_text:
            print(json.dumps(as_json(made)))
        else:
            show(made, Console(), devices_memory)

    run_job(job)


if __name__ == "__main__":
    typer.run(main)
