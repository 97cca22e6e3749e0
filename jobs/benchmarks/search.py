"""Stage beam beside the way its authors run it: `python -m jobs.benchmarks.search`.

Same weights, images, seeds and process. The reference (`reference_search`) makes a `generate` call
for each candidate and each verdict; ours is `stagebeam.search.answer` over the transformers engine
and judge. Both are taken in turn, question after question, each answer by a new replica, or with
`--after` by one that has answered so many other questions. Our seconds are divided into parts and
held against the same forward passes alone.

Two models: the tiny one (the quickstart's where it is trained), and a wider one that was trained
until it writes whole stages; models are kept in `runs/bench/models`.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table

from jobs.benchmarks.figures import write_figures
from jobs.benchmarks.reference_search import ReferenceSearch, ReferenceSettings
from jobs.benchmarks.search_breakdown import OTHER, PARTS, noting_passes, watching
from jobs.benchmarks.search_figures import (
    OurAnswer,
    SearchBenchmark,
    SubjectFigures,
    TheirAnswer,
    Throughput,
    subject_figures,
)
from jobs.benchmarks.search_ideal import alone
from jobs.benchmarks.search_models import (
    MID_SIZE,
    Subject,
    taught_subject,
    tiny_subject,
    unseen_questions,
)
from stagebeam.evaluation.question import prompt_of
from stagebeam.inference.transformers_engine import TransformersEngine
from stagebeam.inference.types import Prompt, Usage
from stagebeam.inference.verdict import TransformersJudge
from stagebeam.search import SearchSettings, Trace, answer
from stagebeam.stages import parse

OUTPUT = Path("runs/bench/search.json")
OUR_N = (1, 2, 4, 8, 16)
THEIR_N, THEIR_N_FULL = (1, 2, 4), OUR_N
_AT_ONCE, _AT_ONCE_N = 8, 4
_MORE_OF_TINY = 3  # times as many questions: its answers are short, and so is what disturbs them
_MAX_ROWS, _KV_BYTES = 64, 256 << 20  # the recipe's defaults


@dataclass(frozen=True, slots=True)
class Plan:
    """How many questions a model is asked, and with which numbers of candidates; `after` how many
    others by each of our replicas."""

    questions: int
    after: int
    our_n: Sequence[int]
    their_n: Sequence[int]


def our_settings(settings: ReferenceSettings, n: int) -> SearchSettings:
    return SearchSettings(
        candidates=n,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
    )


Pair = tuple[TransformersEngine, TransformersJudge]


@contextmanager
def engines(subject: Subject) -> Iterator[Pair]:
    """New ones, with empty caches."""
    engine = TransformersEngine(subject.generator, max_rows=_MAX_ROWS, kv_bytes=_KV_BYTES)
    judge = TransformersJudge(subject.judge, kind="verdict", max_rows=_MAX_ROWS)
    try:
        yield engine, judge
    finally:
        judge.close()
        engine.close()


@contextmanager
def used(subject: Subject, before: Sequence[Prompt], settings: SearchSettings) -> Iterator[Pair]:
    """Such that have answered the questions `before`, and nothing else."""
    with engines(subject) as pair:
        for prompt in before:
            asyncio.run(ask(pair, prompt, settings))
        yield pair


async def ask(pair: Pair, prompt: Prompt, settings: SearchSettings) -> Trace:
    engine, judge = pair
    return await answer(
        prompt,
        engine,
        judge,
        settings,
        generator_id=engine.fingerprint,
        judge_id=judge.fingerprint,
    )


def our_answer(pair: Pair, prompt: Prompt, settings: SearchSettings) -> OurAnswer:
    """One answer to a question that is new to both, with its parts and its floor."""

    async def timed() -> tuple[Trace, float]:
        began = time.perf_counter()
        trace = await ask(pair, prompt, settings)
        return trace, time.perf_counter() - began

    with watching(*pair) as watch:
        trace, seconds = asyncio.run(timed())
    distinct = [sum(c.merged_into is None for c in stage.candidates) for stage in trace.stages]
    longest = sum(max(c.tokens for c in stage.candidates) for stage in trace.stages)
    return OurAnswer(
        seconds=seconds,
        parts=watch.parts_of(seconds),
        ideal_seconds=alone(watch.passes),
        usage=Usage(**trace.usage.model_dump(exclude={"seconds"})),
        passes_floor=longest + trace.usage.judge_calls,
        image_encodes=watch.image_encodes,
        distinct=statistics.mean(distinct),
        whole=not trace.problems,
    )


def their_answer(
    subject: Subject, prompt: Prompt, n: int, settings: ReferenceSettings
) -> TheirAnswer:
    """One answer of the reference."""
    reference = ReferenceSearch(*subject.stock, settings)
    with noting_passes(*subject.stock) as watch:
        given = reference.answer(prompt, n)
    return TheirAnswer(
        seconds=given.seconds,
        seconds_short_verdicts=given.seconds - given.after_first_token_s,
        generate_calls=given.generate_calls,
        image_encodes=watch.image_encodes,
        candidate_tokens=given.candidate_tokens,
        verdict_tokens=given.verdict_tokens,
        whole=parse(given.text).valid,
    )


def throughput(
    subject: Subject, before: Sequence[Prompt], prompts: Sequence[Prompt], settings: SearchSettings
) -> Throughput:
    """The same questions one at a time and all at once, all new to who answers."""

    async def in_turn(pair: Pair) -> float:
        began = time.perf_counter()
        for prompt in prompts:
            await ask(pair, prompt, settings)
        return len(prompts) / (time.perf_counter() - began)

    async def at_once(pair: Pair) -> float:
        began = time.perf_counter()
        await asyncio.gather(*(ask(pair, prompt, settings) for prompt in prompts))
        return len(prompts) / (time.perf_counter() - began)

    with used(subject, before, settings) as pair:
        together = asyncio.run(at_once(pair))
    with used(subject, before, settings) as pair:
        single = asyncio.run(in_turn(pair))
    return Throughput(len(prompts), settings.n, together, single)


class Replicas:
    """Who answers: with questions `before` one pair for each N, that goes on; else a new one for
    each answer."""

    def __init__(self, subject: Subject, before: Sequence[Prompt], opened: ExitStack) -> None:
        self._subject, self._before, self._opened = subject, before, opened
        self._kept: dict[int, Pair] = {}

    def of(self, settings: SearchSettings) -> AbstractContextManager[Pair]:
        made = used(self._subject, self._before, settings)
        if not self._before:
            return made
        if settings.n not in self._kept:
            self._kept[settings.n] = self._opened.enter_context(made)
        return nullcontext(self._kept[settings.n])


def measure(
    subject: Subject, plan: Plan, settings: ReferenceSettings, console: Console
) -> SubjectFigures:
    """All figures of one model; the settings are both sides'."""
    count = 1 + plan.after + plan.questions + _AT_ONCE
    scenes = [prompt_of(example) for example in unseen_questions(count)]
    first, *before = scenes[: 1 + plan.after]
    asked, others = scenes[1 + plan.after : -_AT_ONCE], scenes[-_AT_ONCE:]
    short = replace(settings, max_new_tokens=8, verdict_tokens=2)
    their_answer(subject, first, 2, short)  # what a process does once: kernels, buffers
    with used(subject, [first], our_settings(short, 2)):
        pass
    ours: dict[int, list[OurAnswer]] = defaultdict(list)
    theirs: dict[int, list[TheirAnswer]] = defaultdict(list)
    with ExitStack() as opened:
        replicas = Replicas(subject, before, opened)
        for number, prompt in enumerate(asked, 1):
            for n in plan.our_n:
                if n in plan.their_n:
                    theirs[n].append(their_answer(subject, prompt, n, settings))
                search = our_settings(settings, n)
                with replicas.of(search) as pair:
                    ours[n].append(our_answer(pair, prompt, search))
            console.print(f"{subject.name}, question {number}: {_told(ours, theirs)}")
    rate = throughput(subject, before, others, our_settings(settings, _AT_ONCE_N))
    return subject_figures(subject.made, subject.params, ours, theirs, rate)


def _told(ours: dict[int, list[OurAnswer]], theirs: dict[int, list[TheirAnswer]]) -> str:
    def seconds(n: int) -> str:
        beside = f" (reference {theirs[n][-1].seconds:.2f} s)" if n in theirs else ""
        return f"N={n} {ours[n][-1].seconds:.2f} s{beside}"

    return ", ".join(map(seconds, ours))


def run(
    subjects: Iterable[tuple[Subject, Plan]],
    settings: ReferenceSettings,
    after: int,
    console: Console,
) -> SearchBenchmark:
    """All of it, one model after another."""
    return SearchBenchmark(
        models={
            subject.name: measure(subject, plan, settings, console) for subject, plan in subjects
        },
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_new_tokens=settings.max_new_tokens,
        verdict_tokens=settings.verdict_tokens,
        after=after,
        cpus=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )


def tables(name: str, figures: SubjectFigures) -> Iterator[Table]:
    """What a person reads of it."""
    title = f"{name}: {figures.params / 1e6:.1f} million weights, {figures.made}"
    by_n = Table("", *(f"N={n}" for n in figures.seconds), title=title)

    def row(what: str, values: dict[int, float], digits: int = 2) -> None:
        found = (f"{values[n]:.{digits}f}" if n in values else "-" for n in figures.seconds)
        by_n.add_row(what, *found)

    row("seconds an answer", figures.seconds, 3)
    row("reference / ours", figures.reference_over_ours)
    row("  verdicts of one token", figures.reference_over_ours_short_verdicts)
    row("passes alone / ours", figures.ideal_over_ours)
    row("sequential passes", figures.passes, 0)
    row("  over their floor", figures.passes_over_floor)
    row("image encodings", figures.image_encodes_per_answer, 0)
    row("different candidates", figures.distinct_candidates, 1)
    for part in (*PARTS, OTHER):
        row(f"  s: {part}", {n: parts[part] for n, parts in figures.parts.items()}, 3)
    yield by_n
    targets = Table("figure", "measured", "target", "met")
    for target in figures.targets:
        wanted = f"{target.bound} {target.target:g}"
        targets.add_row(target.name, f"{target.figure:.2f}", wanted, "yes" if target.met else "no")
    yield targets


def main(
    questions: Annotated[
        int, typer.Option(min=3, help="Questions to the wider model; the tiny one gets more.")
    ] = 3,
    full: Annotated[bool, typer.Option(help="The reference with N = 8 and 16 too.")] = False,
    after: Annotated[
        int, typer.Option(min=0, help="Other questions that our replicas have answered before.")
    ] = 0,
    verdict_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of each verdict of the reference.")
    ] = 32,
    output: Annotated[Path, typer.Option(help="Figures as JSON.")] = OUTPUT,
) -> None:
    """Measure stage beam beside the reference, and where its time goes."""
    console = Console()
    torch.set_num_threads(1)  # both sides', and a replica's by default
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    settings = ReferenceSettings(verdict_tokens=verdict_tokens)
    plan = Plan(questions, after, OUR_N, THEIR_N_FULL if full else THEIR_N)

    def subjects() -> Iterator[tuple[Subject, Plan]]:
        yield tiny_subject(), replace(plan, questions=_MORE_OF_TINY * questions)
        yield taught_subject(MID_SIZE), plan

    measured = run(subjects(), settings, after, console)
    shown = [table for name, of in measured.models.items() for table in tables(name, of)]
    write_figures(measured, output, console, shown)


if __name__ == "__main__":
    typer.run(main)
