"""What the simulation predicts, beside what is measured: `python -m jobs.benchmarks.scale`.

The real application (gateway, searcher, router, handles) with 1, 2 and 3 generator replicas whose
engines cost a known time a pass (`scale_engines.py`). Saturated by clients that ask without a
pause, and at a part of that by questions at random times. Predictions are made before anything is
asked, from the costs alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import httpx
import psutil
import ray
import typer
from rich.console import Console
from rich.table import Table

from jobs.benchmarks.figures import write_figures
from jobs.benchmarks.scale_engines import Loaders, Spent
from jobs.benchmarks.serve_chaos import replica_pids
from jobs.benchmarks.serve_load import Body, arrivals, ask_at, percentile
from jobs.cluster import ray_session
from serve.app import serving
from stagebeam.capacity.closed_form import bounds
from stagebeam.capacity.costs import Costs, load_costs
from stagebeam.capacity.simulation import Fleet, Load, Outcome, over_rings, simulate
from stagebeam.recipe import (
    Autoscaling,
    EngineConfig,
    JudgeConfig,
    Limits,
    SearchConfig,
    ServeConfig,
)

OUTPUT = Path("runs/bench/scale.json")
COSTS = Path(__file__).parents[1] / "costs" / "fixed-cost-engines.json"
TARGET = 0.15  # measured beside predicted, off by at most
REPLICAS = (1, 2, 3)
_CLIENTS = 12  # for each generator replica; four questions fill one
_PART = 0.6  # of what saturates it, for questions at random times
_RUNS = 40  # that a prediction is the mean of: which ring Serve draws is luck
_WARM_UP = 1 / 3  # of the time that is measured
_JUDGES = 1
_ALONE = 5  # questions


@dataclass(frozen=True, slots=True)
class Compared:
    """A prediction and what was measured; `error` is measured over predicted, less 1."""

    predicted: float
    measured: float
    error: float


@dataclass(frozen=True, slots=True)
class Scaled:
    """One number of replicas."""

    generators: int
    bound_per_s: float  # closed form: no row is ever idle
    answers_per_s: Compared  # saturated
    same_with_what_was_seen: Compared  # with the passes and the ring that this run had
    alone_s: Compared  # a question with nothing else to do, mean
    answers: int
    pass_over_due: float  # seconds of a pass, over those it should have taken
    shares: list[float]  # of the questions, by replica
    open_rate: float
    open_questions: int
    open_p50_s: Compared
    open_p95_s: Compared
    gateway_cpu_s: float  # of a core, a question
    searcher_cpu_s: float


@dataclass(frozen=True, slots=True)
class ScaleBenchmark:
    """What `scale.json` holds."""

    worst_error: float
    target: float
    scaled: list[Scaled]
    costs: Costs
    seconds: float
    load_average: tuple[float, float, float]  # of the machine, at the end
    cpus: int
    ray: str


def compared(predicted: float, measured: float) -> Compared:
    return Compared(predicted, measured, measured / predicted - 1)


def application(costs: Costs, generators: int, log: Path) -> ServeConfig:
    """As the simulation has it: packed, one judge."""

    def fixed(replicas: int, rows: int) -> Autoscaling:
        return Autoscaling(
            min_replicas=replicas, max_replicas=replicas, num_cpus=0.1, max_batch_rows=rows
        )

    return ServeConfig(
        port=0,
        placement="pack",
        generator=EngineConfig(model=str(log), scaling=fixed(generators, costs.generator.max_rows)),
        judge=JudgeConfig(model=str(log), scaling=fixed(_JUDGES, costs.judge.max_rows)),
    )


def search_of(costs: Costs) -> SearchConfig:
    longest = max(costs.question.lengths(mean)[1] for mean in costs.question.stage_tokens.values())
    return SearchConfig(
        candidates=costs.question.candidates,
        tournament=costs.question.tournament,
        temperature=1.0,
        max_new_tokens=longest,
    )


def predicted(
    costs: Costs,
    generators: int,
    load: Load,
    seconds: float,
    warm_up_s: float,
    shares: Sequence[float] | None = None,
) -> Outcome:
    """The mean of runs that are as long as what is measured, over rings or with these shares."""
    fleet = Fleet(generators, _JUDGES, Limits().max_questions)
    return over_rings(
        [
            simulate(
                costs, fleet, load, seconds=seconds, warm_up_s=warm_up_s, seed=n, shares=shares
            )
            for n in range(_RUNS)
        ]
    )


def question(number: int) -> Body:
    return {
        "model": "stagebeam",
        "messages": [{"role": "user", "content": f"What is {number} plus 4?"}],
        "search": {"include_trace": True},
    }


async def saturate(url: str, clients: int, warm_up_s: float, seconds: float) -> tuple[int, float]:
    """Answers after the warm-up, and the seconds in which they came."""
    began = time.perf_counter()
    opened, until = began + warm_up_s, began + warm_up_s + seconds
    ended: list[float] = []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    async with httpx.AsyncClient(limits=limits, timeout=120) as client:

        async def one(number: int) -> None:
            while time.perf_counter() < until:
                number += clients
                body = dict(question(number))
                reply = await client.post(f"{url}/v1/chat/completions", json=body)
                reply.raise_for_status()
                ended.append(time.perf_counter())

        await asyncio.gather(*map(one, range(clients)))
    return sum(opened <= at < until for at in ended), seconds


async def alone(url: str) -> float:
    """Seconds of an answer where questions are asked one after another, mean."""
    bodies = [question(20_000_000 + number) for number in range(_ALONE)]
    replies = [(await ask_at(url, [body], [0.0]))[0] for body in bodies]
    return sum(reply.seconds for reply in replies) / _ALONE


def cpu_seconds(deployment: str) -> float:
    """Of a deployment's processes, since they were started."""
    spent = (psutil.Process(pid).cpu_times() for pid in replica_pids(deployment))
    return sum(times.user + times.system for times in spent)


def spent_since(log: Path, before: Sequence[Spent]) -> tuple[float, list[float]]:
    """Seconds of a pass over those it should have taken, and each replica's share of the
    questions."""
    now = read_spent(log)
    started = [*before, *[Spent()] * (len(now) - len(before))]
    questions = [n.questions - b.questions for n, b in zip(now, started, strict=True)]
    took = sum(n.pass_s - b.pass_s for n, b in zip(now, started, strict=True))
    due = sum(n.due_s - b.due_s for n, b in zip(now, started, strict=True))
    return took / due, [asked / sum(questions) for asked in questions]


def read_spent(log: Path) -> list[Spent]:
    return [Spent(**json.loads(path.read_text())) for path in sorted(log.glob("*.json"))]


def scaled(costs: Costs, generators: int, seconds: float, console: Console) -> Scaled:
    """Serve so many replicas, saturate them, then ask at random times."""
    clients = _CLIENTS * generators
    warm_up_s = _WARM_UP * seconds
    closed = Load(clients=clients)
    full = predicted(costs, generators, closed, seconds, warm_up_s)
    rate = _PART * full.answers_per_s
    due = arrivals(rate, round(rate * seconds), seed=generators)
    partly = predicted(costs, generators, Load(due=due), 10 * seconds, 0.0)
    bodies = [question(10_000_000 + number) for number in range(len(due))]
    with tempfile.TemporaryDirectory() as folder:
        log, loaders = Path(folder), Loaders(costs)
        with serving(
            application(costs, generators, log),
            search_of(costs),
            generator_loader=loaders.generator,
            judge_loader=loaders.judge,
        ) as url:
            asyncio.run(saturate(url, clients, 0.0, 1.0))  # what a process does once
            alone_s = asyncio.run(alone(url))
            before = read_spent(log)
            cpu = [cpu_seconds(name) for name in ("gateway", "searcher")]
            answered = sum(each.questions for each in before)
            count, over = asyncio.run(saturate(url, clients, warm_up_s, seconds))
            slower, shares = spent_since(log, before)
            answered = sum(each.questions for each in read_spent(log)) - answered
            cpu = [cpu_seconds(n) - c for n, c in zip(("gateway", "searcher"), cpu, strict=True)]
            replies = asyncio.run(ask_at(url, bodies, due))
    assert all(reply.status == 200 for reply in replies)
    seen = predicted(slowed(costs, slower), generators, closed, seconds, warm_up_s, shares)
    found = Scaled(
        generators=generators,
        bound_per_s=generators * bounds(costs).generator_per_s,
        answers_per_s=compared(full.answers_per_s, count / over),
        same_with_what_was_seen=compared(seen.answers_per_s, count / over),
        alone_s=compared(bounds(costs).unloaded_s, alone_s),
        answers=count,
        pass_over_due=slower,
        shares=shares,
        open_rate=rate,
        open_questions=len(due),
        open_p50_s=compared(partly.p50_s, percentile(replies, 50)),
        open_p95_s=compared(partly.p95_s, percentile(replies, 95)),
        gateway_cpu_s=cpu[0] / answered,
        searcher_cpu_s=cpu[1] / answered,
    )
    console.print(f"{found}")
    return found


def slowed(costs: Costs, factor: float) -> Costs:
    """The same with passes that take longer."""
    engine = costs.generator
    changes = {"pass_s": engine.pass_s * factor, "row_s": engine.row_s * factor}
    return costs.model_copy(update={"generator": engine.model_copy(update=changes)})


def table(found: ScaleBenchmark) -> Table:
    """What a person reads of it."""
    made = Table("generators", "figure", "predicted", "measured", "error")
    for each in found.scaled:
        for name, pair, unit in (
            ("answers a second, saturated", each.answers_per_s, ""),
            ("with this run's passes and ring", each.same_with_what_was_seen, ""),
            ("alone", each.alone_s, " s"),
            (f"p50 at {each.open_rate:.2f} a second", each.open_p50_s, " s"),
            (f"p95 at {each.open_rate:.2f} a second", each.open_p95_s, " s"),
        ):
            shown = (f"{number:.2f}{unit}" for number in (pair.predicted, pair.measured))
            made.add_row(str(each.generators), name, *shown, f"{pair.error:+.1%}")
    met = "met" if found.worst_error <= found.target else "missed"
    made.title = f"Worst error of throughput {found.worst_error:.1%}; {found.target:.0%} is {met}"
    return made


def main(
    seconds: Annotated[float, typer.Option(min=5, help="Of each measurement.")] = 60.0,
    costs: Annotated[Path, typer.Option(help="What the engines cost.")] = COSTS,
    output: Annotated[Path, typer.Option(help="Figures as JSON.")] = OUTPUT,
) -> None:
    """Hold the simulation of serving against the real application with engines of known cost."""
    console = Console()
    engines = load_costs(costs)
    with ray_session():
        runs = [scaled(engines, replicas, seconds, console) for replicas in REPLICAS]
    found = ScaleBenchmark(
        worst_error=max(abs(run.answers_per_s.error) for run in runs),
        target=TARGET,
        scaled=runs,
        costs=engines,
        seconds=seconds,
        load_average=os.getloadavg(),
        cpus=os.cpu_count() or 1,
        ray=ray.__version__,
    )
    write_figures(found, output, console, [table(found)])


if __name__ == "__main__":
    typer.run(main)
