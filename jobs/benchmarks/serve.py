"""A search through Serve beside the same search in one process: `python -m jobs.benchmarks.serve`.

The wider model of the search benchmark, with the same engine settings on both sides, question
after question in turn, each asked once of either side. Then empty calls to each deployment, eight
questions at once beside one at a time, open-loop load at several rates, and, on the tiny model,
replicas killed at random.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import ray
import torch
import transformers
import typer
from ray import serve
from rich.console import Console
from rich.table import Table

from jobs.benchmarks.figures import write_figures
from jobs.benchmarks.search_models import KEPT, MID_SIZE, TINY, taught_folder, unseen_questions
from jobs.benchmarks.serve_chaos import ChaosFigures, chaos
from jobs.benchmarks.serve_load import Body, arrivals, ask_at, decisions, percentile
from jobs.cluster import ray_session
from serve.app import APP, serving
from stagebeam.evaluation.question import prompt_of
from stagebeam.inference.transformers_engine import TransformersEngine
from stagebeam.inference.types import Prompt
from stagebeam.inference.verdict import TransformersJudge
from stagebeam.models.load import load
from stagebeam.openai_shape import openai_messages
from stagebeam.recipe import Autoscaling, EngineConfig, JudgeConfig, ServeConfig
from stagebeam.search import SearchSettings, answer
from stagebeam.search_config import SearchConfig

OUTPUT = Path("runs/bench/serve.json")
TARGET = 1.10  # served over in process
SEARCH = SearchConfig(candidates=4, temperature=1.0, top_p=1.0, max_new_tokens=48)
_ROWS, _KEPT_MB = 64, 256  # the recipe's defaults
_AT_ONCE = 8
# Of what the server answers a second with eight questions at once, and how many questions each.
_LOADS = ((0.3, 10), (0.6, 14), (0.9, 18))
_SHOWN_LOAD = 0.6  # of `p50_s` and `p99_s`
_CHAOS_RATE, _CHAOS_EVERY_S = 2.0, 6.0
_EMPTY_CALLS = 50


@dataclass(frozen=True, slots=True)
class Load:
    """Questions that arrived at random, `rate` a second."""

    rate: float
    questions: int
    p50_s: float
    p90_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class ServeBenchmark:
    """What `serve.json` holds. Seconds and hops are medians, ratios of pairs taken in turn."""

    served_over_in_process: float
    served_over_in_process_pairs: list[float]
    served_s: float
    in_process_s: float
    same_answers: int  # of the pairs
    hops_ms: dict[str, float]
    throughput_8_over_1: float
    p50_s: float
    p99_s: float
    loads: list[Load]
    lost: int
    changed: int
    chaos: ChaosFigures
    model: str
    candidates: int
    cpus: int
    ray: str
    torch: str
    transformers: str


def application(folder: Path, replicas: int = 1, num_cpus: float = 0.3) -> ServeConfig:
    """Generator and judge of one model, on replicas of their own."""
    scaling = Autoscaling(
        min_replicas=replicas, max_replicas=replicas, num_cpus=num_cpus, max_batch_rows=_ROWS
    )
    model = str(folder.absolute())
    return ServeConfig(
        port=0,
        generator=EngineConfig(model=model, device="cpu", kv_cache_mb=_KEPT_MB, scaling=scaling),
        judge=JudgeConfig(model=model, device="cpu", kv_cache_mb=_KEPT_MB, scaling=scaling),
    )


def body_of(prompt: Prompt, seed: int) -> Body:
    """The question as a client sends it."""
    return {
        "model": "stagebeam",
        "messages": openai_messages(prompt.messages, prompt.images),
        "search": {"include_trace": True, "seed": seed},
    }


class InProcess:
    """The same engines and the same search without Ray."""

    def __init__(self, folder: Path) -> None:
        loaded = load(str(folder), "cpu")
        self._engine = TransformersEngine(loaded, max_rows=_ROWS, kv_bytes=_KEPT_MB << 20)
        self._judge = TransformersJudge(loaded, kind="verdict", max_rows=_ROWS)

    async def ask(self, prompt: Prompt, seed: int) -> tuple[float, str]:
        """Seconds, and what was decided."""
        began = time.perf_counter()
        settings = SearchSettings(**{**SEARCH.model_dump(), "seed": seed})
        trace = await answer(
            prompt,
            self._engine,
            self._judge,
            settings,
            generator_id=self._engine.fingerprint,
            judge_id=self._judge.fingerprint,
        )
        return time.perf_counter() - began, decisions(trace.model_dump(mode="json"))

    def close(self) -> None:
        """Stop both engines."""
        self._engine.close()
        self._judge.close()


class Served:
    """Over HTTP, one question at a time on one connection."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self._url, self._client = url, client

    async def ask(self, prompt: Prompt, seed: int) -> tuple[float, str]:
        """As `InProcess.ask`."""
        body = dict(body_of(prompt, seed))
        began = time.perf_counter()
        reply = await self._client.post(f"{self._url}/v1/chat/completions", json=body)
        seconds = time.perf_counter() - began
        return seconds, decisions(reply.raise_for_status().json()["trace"])


async def paired(
    served: Served, here: InProcess, prompts: Sequence[Prompt], console: Console
) -> tuple[list[float], list[float], int]:
    """Seconds of both sides, question by question, and how often they decided the same; who is
    first takes turns."""
    first, *others = prompts
    for side in (served, here):  # what a process does once
        await side.ask(first, 0)
    ours: list[float] = []
    alone: list[float] = []
    same = 0
    for number, prompt in enumerate(others, 1):
        sides: list[Served | InProcess] = [served, here]
        took = {side: await side.ask(prompt, 0) for side in sides[:: 1 if number % 2 else -1]}
        ours.append(took[served][0])
        alone.append(took[here][0])
        same += took[served][1] == took[here][1]
        console.print(f"question {number}: {ours[-1]:.2f} s served, {alone[-1]:.2f} s in process")
    return ours, alone, same


async def hops(url: str, client: httpx.AsyncClient) -> dict[str, float]:
    """Milliseconds of empty calls; of the way to the searcher, what it adds to its two calls."""

    async def get(path: str) -> None:
        (await client.get(f"{url}{path}")).raise_for_status()

    def handle(deployment: str, method: str) -> Callable[[], Awaitable[Any]]:
        called = getattr(serve.get_deployment_handle(deployment, APP), method)
        return lambda: called.remote()

    measured = {
        "client, proxy and gateway": await _median_ms(lambda: get("/v1/models")),
        "to the generator": await _median_ms(handle("generator", "fingerprint")),
        "to the judge": await _median_ms(handle("judge", "judge_fingerprint")),
    }
    both = measured["to the generator"] + measured["to the judge"]
    whole = await _median_ms(lambda: get("/healthz"))
    measured["gateway to the searcher"] = whole - both - measured["client, proxy and gateway"]
    measured["all of them (GET /healthz)"] = whole
    return measured


async def _median_ms(call: Callable[[], Awaitable[Any]]) -> float:
    await call()
    took = []
    for _ in range(_EMPTY_CALLS):
        began = time.perf_counter()
        await call()
        took.append(1000 * (time.perf_counter() - began))
    return statistics.median(took)


async def answers_a_second(
    url: str, prompts: Sequence[Prompt], how: Literal["in turn", "at once"]
) -> float:
    """Over the whole, from the first question to the last answer."""
    bodies = [body_of(prompt, 1 if how == "at once" else 2) for prompt in prompts]
    began = time.perf_counter()
    if how == "at once":
        replies = await ask_at(url, bodies, [0.0] * len(bodies))
    else:
        replies = [(await ask_at(url, [body], [0.0]))[0] for body in bodies]
    assert all(reply.status == 200 for reply in replies)
    return len(bodies) / (time.perf_counter() - began)


async def load_at(url: str, prompts: Sequence[Prompt], rate: float) -> Load:
    """Latency of questions that nobody waits for, at this rate."""
    bodies = [body_of(prompt, 3) for prompt in prompts]
    replies = await ask_at(url, bodies, arrivals(rate, len(bodies), seed=0))
    p50, p90, p99 = (percentile(replies, percent) for percent in (50, 90, 99))
    return Load(rate, len(bodies), p50, p90, p99)


@dataclass(frozen=True, slots=True)
class _Steady:
    """What is measured while nothing dies."""

    served: list[float]
    alone: list[float]
    same: int
    hops: dict[str, float]
    throughput_8_over_1: float
    loads: list[Load]


async def steady(url: str, folder: Path, questions: int, console: Console) -> _Steady:
    """All of it against one application."""
    most = max(count for _, count in _LOADS)
    prompts = [prompt_of(e) for e in unseen_questions(1 + questions + _AT_ONCE + most)]
    at_once, others = prompts[1 + questions :][:_AT_ONCE], prompts[1 + questions + _AT_ONCE :]
    here = InProcess(folder)
    try:
        async with httpx.AsyncClient(timeout=120) as client:
            asked = prompts[: 1 + questions]
            served, alone, same = await paired(Served(url, client), here, asked, console)
            empty = await hops(url, client)
    finally:
        here.close()
    one = await answers_a_second(url, at_once, "in turn")
    eight = await answers_a_second(url, at_once, "at once")
    loads = []
    for share, count in _LOADS:
        loads.append(await load_at(url, others[:count], share * eight))
        console.print(f"{loads[-1]}")
    return _Steady(served, alone, same, empty, eight / one, loads)


async def killing(url: str, questions: int) -> ChaosFigures:
    """The tiny model's questions, in calm and while replicas die."""
    prompts = [prompt_of(example) for example in unseen_questions(questions)]
    bodies = [body_of(prompt, 0) for prompt in prompts]
    due = arrivals(_CHAOS_RATE, questions, seed=0)
    return await chaos(url, bodies, due, every_s=_CHAOS_EVERY_S, seed=0)


def run(folder: Path, tiny: Path, questions: int, killed: int, console: Console) -> ServeBenchmark:
    """Both applications, one after another."""
    with ray_session():
        with serving(application(folder), SEARCH) as url:
            calm = asyncio.run(steady(url, folder, questions, console))
        with serving(application(tiny, replicas=2), SEARCH) as url:
            chaotic = asyncio.run(killing(url, killed))
    ratios = [s / a for s, a in zip(calm.served, calm.alone, strict=True)]
    shown = calm.loads[[share for share, _ in _LOADS].index(_SHOWN_LOAD)]
    assert isinstance(SEARCH.candidates, int)
    return ServeBenchmark(
        served_over_in_process=statistics.median(ratios),
        served_over_in_process_pairs=ratios,
        served_s=statistics.median(calm.served),
        in_process_s=statistics.median(calm.alone),
        same_answers=calm.same,
        hops_ms=calm.hops,
        throughput_8_over_1=calm.throughput_8_over_1,
        p50_s=shown.p50_s,
        p99_s=shown.p99_s,
        loads=calm.loads,
        lost=chaotic.lost,
        changed=chaotic.changed,
        chaos=chaotic,
        model=folder.name,
        candidates=SEARCH.candidates,
        cpus=os.cpu_count() or 1,
        ray=ray.__version__,
        torch=torch.__version__,
        transformers=transformers.__version__,
    )


def tables(figures: ServeBenchmark) -> list[Table]:
    """What a person reads of it."""
    ratio, met = figures.served_over_in_process, figures.served_over_in_process <= TARGET
    beside = Table("figure", "measured", title=f"{figures.model}, N={figures.candidates}")
    for name, value in (
        (f"served / in process (at most {TARGET:g}: {'met' if met else 'missed'})", f"{ratio:.3f}"),
        ("seconds served", f"{figures.served_s:.3f}"),
        ("seconds in process", f"{figures.in_process_s:.3f}"),
        ("same answers", f"{figures.same_answers} of {len(figures.served_over_in_process_pairs)}"),
        ("answers a second, 8 at once / one at a time", f"{figures.throughput_8_over_1:.2f}"),
        *((f"ms: {hop}", f"{ms:.1f}") for hop, ms in figures.hops_ms.items()),
    ):
        beside.add_row(name, value)
    loads = Table("questions a second", "questions", "p50 s", "p90 s", "p99 s", title="Open loop")
    for load_ in figures.loads:
        times = (f"{s:.2f}" for s in (load_.p50_s, load_.p90_s, load_.p99_s))
        loads.add_row(f"{load_.rate:.2f}", str(load_.questions), *times)
    killed = Table("questions", "kills", "lost", "changed", "worst s", "worst s in calm")
    of = figures.chaos
    killed.add_row(
        *map(str, (of.questions, of.kills, of.lost, of.changed)),
        f"{of.worst_s:.2f}",
        f"{of.worst_calm_s:.2f}",
    )
    return [beside, loads, killed]


def main(
    questions: Annotated[int, typer.Option(min=1, help="Pairs: asked of both sides.")] = 8,
    killed: Annotated[int, typer.Option(min=1, help="Questions while replicas die.")] = 60,
    output: Annotated[Path, typer.Option(help="Figures as JSON.")] = OUTPUT,
) -> None:
    """Measure what serving adds to a search, how it takes load, and what dying replicas cost."""
    console = Console()
    torch.set_num_threads(1)  # as in a replica
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder, tiny = taught_folder(MID_SIZE, KEPT), taught_folder(TINY, KEPT)
    measured = run(folder, tiny, questions, killed, console)
    write_figures(measured, output, console, tables(measured))


if __name__ == "__main__":
    typer.run(main)
