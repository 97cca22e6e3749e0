"""Which judge makes search pay: `python -m jobs.benchmarks.judges [--task hunt] [--seed 0 ...]`.

For each seed a generator is trained from scratch, and judges from it (`judge_models`). Fresh
scenes are asked greedily, by majority, by best-of-N and by stage beam under each judge, and of each
judge's own model alone. Models and answers are kept: an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, cast

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table

from jobs.asking import run_plan
from jobs.benchmarks.figures import write_figures
from jobs.benchmarks.judge_models import (
    ASKING,
    CARD,
    Folder,
    Trained,
    faults_of,
    home,
    make_generator,
    make_judge,
    sample_texts,
    single,
)
from stagebeam.evaluation.answers import AnswerRow, AnswerStore
from stagebeam.evaluation.ask import EngineAsk
from stagebeam.evaluation.judge_card import JudgePair, judge_card
from stagebeam.evaluation.question import prompt_of
from stagebeam.evaluation.results import JudgeCard
from stagebeam.evaluation.statistics import Interval, paired_difference, wilson
from stagebeam.inference.ensemble import EnsembleJudge
from stagebeam.inference.text_judge import TextJudge
from stagebeam.inference.transformers_engine import TransformersEngine
from stagebeam.inference.types import Candidate, GenerateRequest, Generator, Judge, Usage
from stagebeam.inference.verdict import JudgeKind, TransformersJudge
from stagebeam.models.load import load
from stagebeam.records import Example
from stagebeam.search import SearchSettings
from stagebeam.search.seeds import question_key
from stagebeam.search.votes import normalise
from stagebeam.source_config import SceneQuestions

KEPT = Path("runs/bench/judges")
OUTPUT = Path("runs/bench/judges.json")
SEEDS = (0, 1, 2)
N = 4
QUESTIONS, CARD_QUESTIONS = 2000, 256
CONCURRENCY = 32
SETTINGS = SearchSettings(
    method="stage_beam", candidates=N, temperature=1.0, top_p=1.0, max_new_tokens=160
)
BATCH_ROWS, _KEPT_BYTES = 128, 256 << 20
_VERDICT_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Kind:
    """A judge: whose models, of which seeds, read how."""

    model: str  # generator, longer, pairs, reward or samples
    reading: JudgeKind | Literal["text"] = "likelihood"
    peers: bool = False  # those of all seeds together

    def members(self, seed: int, seeds: Sequence[int]) -> tuple[int, ...]:
        return tuple(seeds) if self.peers else (seed,)


KINDS = {
    "itself": Kind("generator"),
    "trained longer": Kind("longer"),
    "pairs": Kind("pairs"),
    "reward": Kind("reward", "reward"),
    "reward of samples": Kind("samples", "reward"),
    "mean likelihood": Kind("longer", "mean_likelihood"),
    "verdict": Kind("generator", "verdict"),
    "text": Kind("generator", "text"),
    "peers": Kind("generator", peers=True),
    "peers trained longer": Kind("longer", peers=True),
}


@dataclass(frozen=True, slots=True)
class Against:
    """Stage beam less another method on the same questions of all seeds."""

    accuracy: float
    difference: float
    interval: Interval
    p: float


@dataclass(frozen=True, slots=True)
class Measured:
    """One judge over all seeds: shares of right answers, and what they say of stage beam."""

    stage_beam: float
    interval: Interval
    by_seed: dict[int, dict[str, float]]
    against: dict[str, Against]
    oracle: float
    card: dict[int, JudgeCard]
    questions: int


@dataclass(frozen=True, slots=True)
class JudgesBenchmark:
    """What `judges.json` holds."""

    judges: dict[str, Measured]
    candidates: int
    generator: str
    temperature: float
    cpu_seconds: dict[str, float]  # of training each model
    torch: str
    transformers: str
    task: SceneQuestions = "mixed"


def fresh(seed: int, questions: int, task: SceneQuestions = "mixed") -> list[Example]:
    """Scenes with one question that no model of any seed was trained on."""
    return list(islice(single(ASKING, seed, 4 * questions, task), questions))


class Remembering:
    """A generator that is asked the same only once: methods that draw the same candidates share
    them, which is exact, for a call's seeds decide its texts."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._known: dict[object, list[Candidate | Usage]] = {}

    async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
        how = request.prefix, request.stops, request.seeds, request.sampling
        key = question_key(request.prompt), *how
        if key not in self._known:
            self._known[key] = [item async for item in self._generator.propose(request)]
        for item in self._known[key]:
            yield item


@dataclass(frozen=True, slots=True)
class Run:
    """Who generates, how warm, and where answers are kept."""

    root: Path
    seeds: tuple[int, ...]  # whose models are peers
    questions: int
    generator: str = "generator"  # or what a judge may be
    temperature: float = 1.0
    task: SceneQuestions = "mixed"

    @property
    def settings(self) -> SearchSettings:
        return replace(SETTINGS, temperature=self.temperature)

    def folder(self, seed: int) -> Folder:
        return Folder(self.root, seed, self.task)

    def model(self, name: str, seed: int) -> Path:
        """The folder of a model, made if it is not there."""
        folder = self.folder(seed)
        if name == "generator":
            return make_generator(folder)
        return make_judge(folder, cast(Trained, name))

    def make_models(self, judges: Sequence[str], measured: Sequence[int]) -> None:
        """All that will be asked. Before an event loop runs: sampling has one of its own."""
        for seed in measured:
            self.model(self.generator, seed)
            for kind in (KINDS[name] for name in judges):
                for member in kind.members(seed, self.seeds):
                    self.model(kind.model, member)

    def store(self, seed: int, name: str) -> AnswerStore:
        """What one model or judge was asked already."""
        by = f"answers-{self.generator}-{self.temperature:g}".replace(" ", "_")
        return AnswerStore(self.folder(seed).path / by / name.replace(" ", "_"))


Rows = list[AnswerRow]


class Seed:
    """Everything that is asked of one seed's generator."""

    def __init__(self, seed: int, run: Run, console: Console) -> None:
        self.seed, self._run, self._console = seed, run, console
        self._examples = fresh(seed, run.questions, run.task)
        self._open = ExitStack()
        self._judges: dict[str, Judge] = {}
        self._generator = self._engine(self._run.model(run.generator, seed))
        self._remembering = Remembering(self._generator)

    def close(self) -> None:
        self._open.close()

    def _engine(self, folder: Path) -> TransformersEngine:
        engine = engine_of(folder)
        self._open.callback(engine.close)
        return engine

    def judge(self, name: str) -> Judge:
        """The judge, made if it is not there, and opened once."""
        if name not in self._judges:
            self._judges[name] = self._opened(KINDS[name])
        return self._judges[name]

    def _opened(self, kind: Kind) -> Judge:
        members = [self._member(kind, s) for s in kind.members(self.seed, self._run.seeds)]
        return members[0] if len(members) == 1 else EnsembleJudge(members)

    def _member(self, kind: Kind, seed: int) -> Judge:
        folder = self._run.model(kind.model, seed)
        if kind.reading == "text":
            return TextJudge(self._engine(folder), orders="one", max_new_tokens=_VERDICT_TOKENS)
        loaded = load(str(folder), "cpu")
        judge = TransformersJudge(loaded, kind=kind.reading, max_rows=BATCH_ROWS)
        self._open.callback(judge.close)
        return judge

    def _ask(self, judge: Judge | None = None) -> EngineAsk:
        return EngineAsk(self._remembering, "generator", self._run.settings, judge)

    async def plain(self, candidates: Sequence[int] = (N,)) -> dict[str, Rows]:
        """Greedy and majority: no judge."""
        ask = self._ask()
        plan = [("greedy", 1), *(("majority", n) for n in candidates)]
        return await self._asked("plain", ask, plan)

    async def judged(self, name: str, candidates: Sequence[int] = (N,)) -> dict[str, Rows]:
        """Best of N and stage beam under a judge."""
        ask = self._ask(self.judge(name))
        plan = [(method, n) for n in candidates for method in ("best_of_n", "stage_beam")]
        return await self._asked(name, ask, plan)

    async def alone(self, name: str) -> list[Rows]:
        """The greedy answers of each of the judge's models."""
        kind = KINDS[name]
        found = []
        for seed in kind.members(self.seed, self._run.seeds):
            ask = EngineAsk(
                self._engine(self._run.model(kind.model, seed)), "alone", self._run.settings
            )
            rows = await self._asked(f"{kind.model}-{seed} alone", ask, (("greedy", 1),))
            found.append(rows["greedy"])
        return found

    async def card(self, name: str) -> JudgeCard:
        """Gold stages against the generator's first faults on other scenes."""
        pairs: list[JudgePair] = []
        for example in single(CARD, self.seed, CARD_QUESTIONS, self._run.task):
            texts = await sample_texts(self._generator, example, self.seed, 2)
            pairs += [
                JudgePair(
                    prompt_of(example),
                    fault.stage,
                    fault.prefix,
                    (fault.chosen, fault.rejected),
                    0,
                    example.category,
                )
                for fault in faults_of(example, texts)
            ]
        return await judge_card(self.judge(name), pairs)

    async def _asked(
        self, name: str, ask: EngineAsk, plan: Sequence[tuple[str, int]]
    ) -> dict[str, Rows]:
        store = self._run.store(self.seed, name)
        of = f"seed {self.seed}, {name}: "
        return await run_plan(ask, plan, self._examples, store, CONCURRENCY, self._console, of=of)


def engine_of(folder: Path) -> TransformersEngine:
    """The folder's model, as generators are asked here."""
    return TransformersEngine(load(str(folder), "cpu"), max_rows=BATCH_ROWS, kv_bytes=_KEPT_BYTES)


def voted(members: Sequence[Rows]) -> list[bool]:
    """Whether the answer that most members give is right; of a draw, the first member's."""
    right = []
    for rows in zip(*members, strict=True):
        said = [normalise(row.conclusion or "") for row in rows]
        most, _ = Counter(said).most_common(1)[0]
        right.append(
            next(row.correct for row, text in zip(rows, said, strict=True) if text == most)
        )
    return right


async def measure(
    names: Sequence[str], measured: Sequence[int], run: Run, console: Console
) -> dict[str, Measured]:
    """Every judge on the questions of the `measured` seeds."""
    right: dict[str, dict[int, dict[str, list[bool]]]] = {name: {} for name in names}
    oracle: dict[str, list[bool]] = {name: [] for name in names}
    cards: dict[str, dict[int, JudgeCard]] = {name: {} for name in names}
    for seed in measured:
        asked = Seed(seed, run, console)
        plain = await asked.plain()
        for name in names:
            rows = {**plain, **await asked.judged(name)}
            alone = await asked.alone(name)
            cards[name][seed] = await asked.card(name)
            found = {method: [row.correct for row in rows[method]] for method in rows}
            best = max(alone, key=lambda rows: sum(row.correct for row in rows))
            found["judge alone"] = [row.correct for row in best]
            if len(alone) > 1:
                found["judge's models voting"] = voted(alone)
            right[name][seed] = found
            oracle[name] += [bool(row.oracle) for row in rows[f"best_of_n@{N}"]]
        asked.close()
    return {name: _summary(right[name], oracle[name], cards[name]) for name in names}


def _summary(
    right: dict[int, dict[str, list[bool]]], oracle: list[bool], card: dict[int, JudgeCard]
) -> Measured:
    ours = f"stage_beam@{N}"
    methods = list(next(iter(right.values())))
    pooled = {m: [one for found in right.values() for one in found[m]] for m in methods}
    against = {}
    for method in methods:
        if method != ours:
            paired = paired_difference(pooled[ours], pooled[method])
            against[method] = Against(
                _mean(pooled[method]), paired.difference, paired.interval, paired.p
            )
    return Measured(
        stage_beam=_mean(pooled[ours]),
        interval=wilson(sum(pooled[ours]), len(pooled[ours])),
        by_seed={s: {m: _mean(values) for m, values in f.items()} for s, f in right.items()},
        against=against,
        oracle=_mean(oracle),
        card=card,
        questions=len(oracle),
    )


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def table(measured: JudgesBenchmark) -> Table:
    """A line for each judge."""
    shown = Table(title=f"Stage beam with N = {N} less ..., points (95 % interval)")
    others = ["greedy", f"majority@{N}", f"best_of_n@{N}", "judge alone", "judge's models voting"]
    for column in ("judge", "pairs right", "stage beam", *others, "oracle"):
        shown.add_column(column)
    for name, one in measured.judges.items():
        pairs = sum(card.correct for card in one.card.values())
        share = pairs / sum(card.pairs for card in one.card.values())
        cells = [
            f"{100 * a.difference:+.1f} ({100 * a.interval[0]:+.1f} to {100 * a.interval[1]:+.1f})"
            if (a := one.against.get(other))
            else "-"
            for other in others
        ]
        ours, oracle = f"{one.stage_beam:.1%}", f"{one.oracle:.1%}"
        shown.add_row(name, f"{share:.1%}", ours, *cells, oracle)
    return shown


def main(
    seed: Annotated[list[int], typer.Option(help="Seeds to measure.")] = list(SEEDS),  # noqa: B006
    judge: Annotated[list[str], typer.Option(help=f"Judges: {', '.join(KINDS)}.")] = list(KINDS),  # noqa: B006
    only: Annotated[
        int | None, typer.Option(help="Ask the questions of this seed alone, as a part of a run.")
    ] = None,
    questions: Annotated[int, typer.Option(help="Fresh scenes for each seed.")] = QUESTIONS,
    generator: Annotated[
        str, typer.Option(help="Which model generates: generator or longer.")
    ] = "generator",
    temperature: Annotated[float, typer.Option(help="Of the candidates.")] = 1.0,
    task: Annotated[SceneQuestions, typer.Option(help="What is asked about scenes.")] = "mixed",
    kept: Annotated[Path, typer.Option(help="Where models and answers are kept.")] = KEPT,
    output: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")] = OUTPUT,
) -> None:
    """Train generators and judges, and measure every judge by search."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    console = Console()
    asked = seed if only is None else [only]
    run = Run(kept, tuple(seed), questions, generator, temperature, task)
    run.make_models(judge, asked)
    found = asyncio.run(measure(judge, asked, run, console))
    seconds = {
        f"{path.parent.name}/{path.stem}": float(path.read_text())
        for path in sorted(home(kept, task).glob("seed-*/*.cpu_seconds"))
    }
    versions = torch.__version__, transformers.__version__
    measured = JudgesBenchmark(found, N, generator, temperature, seconds, *versions, task)
    write_figures(measured, output, console, [table(measured)])


if __name__ == "__main__":
    typer.run(main)
