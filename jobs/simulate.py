"""Predict serving and training at any size: `python -m jobs.simulate [COSTS.json]`.

Throughput, latency, replicas and price at so many questions a minute, by simulation; hours of an
epoch on so many GPUs, by arithmetic (docs/scale.md). No Ray, no GPU, no weights. Tables come as
Markdown.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from jobs.errors import run_job
from stagebeam.capacity.closed_form import bounds
from stagebeam.capacity.costs import Costs, load_costs
from stagebeam.capacity.epochs import Epoch, epoch
from stagebeam.capacity.plan import Plan, needed

FOLDER = Path(__file__).parent / "costs"
COSTS = FOLDER / "h100-11b-assumed.json"
RATES = (10.0, 1_000.0, 100_000.0)
ROWS = (100_000, 10_000_000)
GPUS = (8, 16, 32, 64, 128, 256, 512)
# How much longer than alone 95 % of the answers may take.
_PATIENCE = 2.0
_WIDTH = 200  # characters of a table that is written to a file


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, title_justify="left", box=box.MARKDOWN)


def _alone(costs: Costs) -> Table:
    found = bounds(costs)
    made = _table("One question, and one replica (closed form, predicted)", "what", "predicted")
    made.add_row("seconds of an answer, nothing else to do", f"{found.unloaded_s:.2f}")
    made.add_row("answers a second of a generator, at most", f"{found.generator_per_s:.2f}")
    made.add_row("answers a second of a judge, at most", f"{found.judge_per_s:.2f}")
    return made


def _serving(plans: list[Plan]) -> list[Table]:
    title = "Serving, 95 % of the answers within {:.3g} s (simulated, predicted)"
    fleets = _table(
        title.format(plans[0].p95_s),
        *("questions a minute", "generators", "judges", "searchers", "gateways", "GPUs"),
        *("price an hour", "price of 1,000 answers"),
    )
    times = _table(
        "The same fleets under that load (simulated, predicted)",
        *("questions a minute", "answers a minute", "mean s", "closed form s", "p50", "p95"),
        *("p99", "at once", "generators busy", "busiest", "judges busy", "rows"),
    )
    for each in plans:
        rate, seen = f"{each.per_minute:,.0f}", each.outcome
        replicas = (each.fleet.generators, each.fleet.judges, each.searchers, each.gateways)
        prices = (f"{each.gpus:,.0f}", f"{each.per_hour:,.2f}", f"{each.per_thousand:,.2f}")
        fleets.add_row(rate, *(f"{count:,}" for count in replicas), *prices)
        seconds = (seen.mean_s, each.mean_field_s, seen.p50_s, seen.p95_s, seen.p99_s)
        shares = (seen.generators_busy, seen.busiest_generator, seen.judges_busy)
        times.add_row(
            rate,
            f"{60 * seen.answers_per_s:,.0f}",
            *(f"{s:.2f}" for s in seconds),
            f"{seen.at_once:,.1f}",
            *(f"{share:.0%}" for share in shares),
            f"{seen.rows:.1f}",
        )
    return [fleets, times]


def _training(epochs: list[Epoch], price: float) -> Table:
    made = _table(
        "An epoch of training (arithmetic, predicted)",
        *("rows", "GPUs", "global batch", "steps", "hours, all overlapped", "hours, in turn"),
        *("longest part", "price, overlapped"),
    )
    for each in epochs:
        made.add_row(
            *(f"{n:,}" for n in (each.rows, each.gpus, each.global_batch, each.steps)),
            *(f"{hours:.3g}" for hours in (each.hours, each.hours_in_turn)),
            each.longest,
            f"{each.hours * each.gpus * price:,.0f}",
        )
    return made


def as_json(costs: Costs, plans: list[Plan], epochs: list[Epoch]) -> dict[str, Any]:
    """Every prediction, with what it was made from."""
    return {
        "predicted": True,
        "costs": costs.model_dump(),
        "bounds": asdict(bounds(costs)),
        "serving": [asdict(each) for each in plans],
        "training": [asdict(each) for each in epochs],
    }


def main(
    costs: Annotated[Path, typer.Argument(help="What everything costs (docs/scale.md).")] = COSTS,
    rate: Annotated[
        list[float] | None, typer.Option(min=0.01, help="Questions a minute; may be repeated.")
    ] = None,
    p95: Annotated[
        float | None,
        typer.Option(min=0.001, help="Seconds for 95 % of the answers; else twice those alone."),
    ] = None,
    price: Annotated[float, typer.Option(min=0, help="Of a GPU for an hour.")] = 3.0,
    rows: Annotated[list[int] | None, typer.Option(min=1, help="Rows of an epoch.")] = None,
    gpus: Annotated[list[int] | None, typer.Option(min=1, help="GPUs to train on.")] = None,
    seed: Annotated[int, typer.Option(help="Of arrivals, lengths and rings.")] = 0,
    as_json_text: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Predict throughput, latency, replicas and price of serving, and hours of training."""

    def job() -> None:
        console = Console()
        loaded = load_costs(costs)
        promised = _PATIENCE * bounds(loaded).unloaded_s if p95 is None else p95
        plans = [
            needed(loaded, each, p95_s=promised, price=price, seed=seed) for each in rate or RATES
        ]
        epochs = [
            epoch(training, many, on)
            for training in filter(None, [loaded.training])
            for many in rows or ROWS
            for on in gpus or GPUS
        ]
        if as_json_text:
            print(json.dumps(as_json(loaded, plans, epochs)))
            return
        console.print(
            f"{loaded.name}: costs are {loaded.origin}, what follows is predicted. {loaded.how}\n",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        wide = console if console.is_terminal else Console(width=_WIDTH)
        wide.print(_alone(loaded), *_serving(plans))
        if epochs:
            wide.print(_training(epochs, price))

    run_job(job)


if __name__ == "__main__":
    typer.run(main)
