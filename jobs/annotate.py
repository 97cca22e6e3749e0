"""Have a teacher write a data set: `python -m jobs.annotate RECIPE [--fresh] [--limit N]`.

The teacher stands behind any OpenAI-compatible endpoint, named in the recipe's `annotate` section.
The work is waiting for it, so one process with asyncio does it all; Ray has no part in it. Exit
code 3: the job ended early (spending limit, endpoint down, Ctrl-C); run again, it goes on.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from jobs.arguments import RecipeFile
from jobs.errors import run_job
from jobs.progress import StepBar
from stagebeam.annotate_config import AnnotateConfig
from stagebeam.data.annotate.client import Call
from stagebeam.data.annotate.control import Stop
from stagebeam.data.annotate.estimate import Estimate, estimate
from stagebeam.data.annotate.output import Report
from stagebeam.data.annotate.run import Job, Progress, annotate, load_job
from stagebeam.recipe import Recipe, load_recipe

UNFINISHED = 3


def required(recipe: Recipe) -> AnnotateConfig:
    """The annotate section; raises ValueError where there is none."""
    if recipe.annotate is None:
        raise ValueError(f"The recipe '{recipe.name}' has no annotate section.")
    return recipe.annotate


async def run(job: Job, *, fresh: bool, console: Console) -> Report:
    """Annotate under a progress bar; SIGINT and SIGTERM end the job in order."""
    stop = Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _end, number, stop)
    started = time.monotonic()
    with StepBar(console, "annotate", job.rows) as bar:

        def show(progress: Progress) -> None:
            bar.update(progress.done, _note(progress, time.monotonic() - started))

        return await annotate(job, stop, fresh=fresh, on_progress=show)


def _end(number: signal.Signals, stop: Stop) -> None:
    """The first signal waits for the calls in flight, a second one does not."""
    stop.set(f"{number.name} was received")
    asyncio.get_running_loop().remove_signal_handler(number)


def _note(progress: Progress, seconds: float) -> str:
    rate = progress.done / max(seconds, 1e-3) * 60
    return (
        f"{progress.refused} refused, {progress.requests} calls, "
        f"cost {progress.spent:.4f}, {rate:.0f} rows/min"
    )


def _show(report: Report, folder: Path, console: Console) -> None:
    table = Table("rows", "", title=str(folder), title_justify="left")
    table.add_row("annotated", str(report.annotated))
    for fault, rows in sorted(report.refused.items()):
        table.add_row(f"refused: {fault}", str(rows))
    table.add_section()
    table.add_row("requests", str(report.requests))
    for cause, requests in sorted(report.failed.items()):
        table.add_row(f"failed: {cause}", str(requests))
    for fault, replies in sorted(report.unusable.items()):
        table.add_row(f"unusable: {fault}", str(replies))
    table.add_section()
    table.add_row("tokens in, out", f"{report.prompt_tokens}, {report.completion_tokens}")
    table.add_row("cost", f"{report.cost:.4f}")
    if report.unsure:
        most = f"{report.unsure_cost:.4f} at most"
        table.add_row(f"{report.unsure} requests without a reply", most)
    console.print(table)


def _show_estimate(found: Estimate, console: Console) -> None:
    for call in found.first:
        _show_call(call, console)
    console.print(
        f"{found.rows} rows, {found.calls} calls if none is repeated: about "
        f"{found.prompt_tokens} tokens in, at most {found.completion_tokens} out, cost at most "
        f"about {found.cost:.4f} (from the first {found.sampled} rows). Nothing was asked.",
        highlight=False,
        markup=False,
    )


def _show_call(call: Call, console: Console) -> None:
    images = f", {len(call.images)} image(s)" if call.images else ""
    console.rule("/".join(map(str, call.key)) + images)
    for message in call.messages:
        console.print(f"[{message.role}]\n{message.text}\n", highlight=False, markup=False)


def _run(path: str, fresh: bool, limit: int | None, dry_run: bool) -> None:
    recipe = load_recipe(path)
    config = required(recipe)
    job = load_job(config, recipe.data, recipe.seed, limit)
    if dry_run:
        _show_estimate(estimate(job), Console())
        return
    report = asyncio.run(run(job, fresh=fresh, console=Console(stderr=True)))
    _show(report, config.output_dir, Console())
    if report.stopped is not None:
        print(f"stopped: {report.stopped}", file=sys.stderr)
        raise SystemExit(UNFINISHED)


def main(
    recipe: RecipeFile,
    fresh: Annotated[
        bool, typer.Option(help="Forget what the folder holds, paid replies too.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows.")] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Print the first prompts and an estimate, ask nothing.")
    ] = False,
) -> None:
    """Have a teacher behind an OpenAI-compatible endpoint write a data set."""
    run_job(lambda: _run(recipe, fresh, limit, dry_run))


if __name__ == "__main__":
    typer.run(main)
