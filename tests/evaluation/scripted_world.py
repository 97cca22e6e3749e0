"""A small world with known odds: drawn scenes, a generator that errs, a judge that mostly sees it.

The real search runs over it, so traces, costs and figures have the shape of real ones.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

from PIL import Image as Picture
from PIL import ImageDraw

from stagebeam.evaluation.answers import AnswerStore, Rows, name_of, summarise
from stagebeam.evaluation.ask import Ask, run_method
from stagebeam.evaluation.cases import Case, cases_of
from stagebeam.evaluation.judge_card import JudgePair, judge_card
from stagebeam.evaluation.question import prompt_of
from stagebeam.evaluation.results import (
    SEARCHES,
    JudgeResult,
    JudgeTrainingCost,
    Repeat,
    RepeatFile,
    RepeatWeights,
    Results,
    ShardsResult,
    TrainResult,
)
from stagebeam.inference.types import (
    Candidate,
    GenerateRequest,
    Judgement,
    JudgeRequest,
    Prompt,
    Usage,
    Verdict,
)
from stagebeam.records import Example, Image, Message
from stagebeam.search import SearchSettings, Trace, answer
from stagebeam.search.calibration import Row, calibrate, write_calibration
from stagebeam.search.seeds import question_key
from stagebeam.search.settings import Method
from stagebeam.search.state import current_stage
from stagebeam.stages import STAGES, Stage, conclusion, render, wrap

SETTINGS = SearchSettings(temperature=1.0)
COLOURS = {"red": "#d8453b", "green": "#3f9b54", "blue": "#3b6fd8"}
QUESTIONS = 90  # that reports ask at most
METHODS: tuple[tuple[str, int], ...] = (
    ("greedy", 1),
    *((method, n) for n in (2, 4) for method in SEARCHES),
)
IDS = {"generator_id": "scripted-generator", "judge_id": "scripted-judge"}


def example(number: int) -> Example:
    """How many circles of one colour are there? Every third one is multiple choice."""
    rng = random.Random(number)
    colour, count = rng.choice(list(COLOURS)), rng.randint(1, 4)
    picture = Picture.new("RGB", (96, 96), "white")
    draw = ImageDraw.Draw(picture)
    for place in rng.sample(range(9), count):
        x, y = 6 + 30 * (place % 3), 6 + 30 * (place // 3)
        draw.ellipse((x, y, x + 22, y + 22), fill=COLOURS[colour])
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    question = f"How many {colour} circles are there?"
    choices = ("1", "2", "3", "4") if number % 3 == 0 else ()
    gold = "ABCD"[count - 1] if choices else str(count)
    return Example(
        id=f"scene-{number}",
        images=(Image(buffer.getvalue(), f"{number}.png"),),
        messages=(
            Message("user", question),
            Message("assistant", render(dict.fromkeys(STAGES, gold))),
        ),
        source="scenes",
        split="test",
        answer=gold,
        choices=choices,
        category="choice" if choices else "count",
    )


@dataclass(frozen=True)
class World:
    """What the scripted models know."""

    examples: tuple[Example, ...]

    def gold(self, prompt: Prompt) -> str:
        return next(e.answer or "" for e in self.examples if prompt_of(e) == prompt)


@dataclass(frozen=True)
class ScriptedGenerator:
    """Right with probability `skill` a stage of reasoning, by the seed alone."""

    world: World
    skill: float = 0.55

    async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
        gold = self.world.gold(request.prompt)
        whole = request.stops == (Stage.CONCLUSION.close_tag,) and not request.prefix
        wanted = STAGES if whole else [s for s in STAGES if s.close_tag in request.stops]
        if ". " in request.stops:  # a stage is a sentence here
            wanted = [current_stage(request.prefix)]
        for index, seed in enumerate(request.seeds):
            rng = random.Random(seed)
            said = gold if rng.random() < self.skill else rng.choice("1234ABCD")
            if wanted == [Stage.CONCLUSION]:  # follows from the reasoning
                said = request.prefix.split("answer is ")[1].split(".")[0]
            text = " ".join(wrap(s, self._body(s, said, rng)) for s in wanted)
            yield Candidate(index, text, 11 * len(wanted), -3.0 - rng.random(), "stop")
        yield Usage(1, 40, 11 * len(wanted) * len(request.seeds), 11 * len(wanted))

    def _body(self, stage: Stage, said: str, rng: random.Random) -> str:
        return {
            Stage.SUMMARY: "I will count the circles of the colour that is asked for.",
            Stage.CAPTION: f"The image shows circles {rng.choice(['spread', 'set', 'laid'])} out.",
            Stage.REASONING: f"Counting them one by one, the answer is {said}.",
            Stage.CONCLUSION: said,
        }[stage]


@dataclass(frozen=True)
class ScriptedJudge:
    """Sees which of two texts is right, under noise and a bias for the one shown first."""

    world: World
    noise: float = 1.6
    bias: float = 0.3

    async def compare(self, request: JudgeRequest) -> Judgement:
        gold = self.world.gold(request.prompt)
        known = [
            f"answer is {gold}." in text or conclusion(text) == gold for text in request.candidates
        ]
        verdicts = []
        for a, b in request.pairs:
            rng = random.Random(request.candidates[a] + request.candidates[b])
            margin = known[a] - known[b] + rng.gauss(0, self.noise) / 2
            verdicts.append(Verdict(margin + self.bias, margin - self.bias))
        scores = tuple(
            right + random.Random(text).gauss(0, self.noise) / 2
            for right, text in zip(known, request.candidates, strict=True)
        )
        usage = Usage(judge_tokens=120 * max(len(request.pairs), 1), judge_calls=1)
        return Judgement(tuple(verdicts), usage, scores)


def searching(
    generator: ScriptedGenerator, judge: ScriptedJudge, settings: SearchSettings = SETTINGS
) -> Ask:
    """Asks the scripted models in this process."""

    async def ask(asked: Example, method: Method, n: int) -> Trace:
        wanted = replace(settings, method=method, candidates=n)
        return await answer(prompt_of(asked), generator, judge, wanted, **IDS)

    return ask


async def calibrated(path: Path) -> SearchSettings:
    """Settings with cutoffs for `retrace`, from questions that no report asks."""
    known = {prompt_of(example(number)) for number in range(QUESTIONS)}
    drawn = (example(number) for number in range(1000, 1020))
    world = World(tuple(e for e in drawn if prompt_of(e) not in known))
    free = replace(SETTINGS, max_retraces=0)
    ask = searching(ScriptedGenerator(world), ScriptedJudge(world), free)
    traces = [await ask(asked, "retrace", 4) for asked in world.examples]
    rows = [Row(id=e.id, digest=question_key(prompt_of(e))) for e in world.examples]
    write_calibration(calibrate(traces, rows), path)
    return replace(SETTINGS, calibration=path)


async def ask_everything(world: World, folder: Path) -> tuple[AnswerStore, Rows]:
    """Every method, and a stronger model alone, on every example."""
    store, judge = AnswerStore(folder), ScriptedJudge(world)
    settings = await calibrated(folder / "calibration.json")
    ask = searching(ScriptedGenerator(world), judge, settings)
    rows = {
        name_of(method, n): await run_method(ask, world.examples, method, n, store, concurrency=8)
        for method, n in METHODS
    }
    alone = searching(ScriptedGenerator(world, skill=0.8), judge)
    rows["judge_alone"] = await run_method(
        alone, world.examples, "judge_alone", 1, store, concurrency=8
    )
    return store, rows


def judge_pairs(world: World) -> list[JudgePair]:
    """For each question a right and a wrong text, of the reasoning and of the conclusion."""
    pairs = []
    for number, asked in enumerate(world.examples):
        wrong = "1" if asked.answer != "1" else "2"
        better = number % 2
        for stage, form in (
            (Stage.REASONING, "I count, so the answer is {}."),
            (Stage.CONCLUSION, "Then the answer is {}."),
        ):
            texts = [wrap(stage, form.format(said)) for said in (asked.answer, wrong)]
            pairs.append(
                JudgePair(
                    prompt=prompt_of(asked),
                    stage=stage,
                    prefix="",
                    candidates=(texts[better], texts[1 - better]),
                    better=1 if better else 0,
                    category=asked.category,
                )
            )
    return pairs


def build_report(folder: Path, questions: int = QUESTIONS) -> tuple[Results, list[Case]]:
    """Results and cases as a quickstart would have them."""
    world = World(tuple(example(number) for number in range(questions)))
    store, rows = asyncio.run(ask_everything(world, folder))
    card = asyncio.run(judge_card(ScriptedJudge(world), judge_pairs(world)))
    weak = asyncio.run(judge_card(ScriptedJudge(world, noise=6.0, bias=1.5), judge_pairs(world)))
    results = Results(
        **summarise(rows, card).model_dump(),
        name="scripted world",
        created="2026-11-21T00:00:00+00:00",
        concurrency=8,
        train=TrainResult(
            world_size=2, zero_stage=3, steps=850, rows=24000, final_loss=0.2134, seconds=224.1
        ),
        shards=ShardsResult(rows=24000),
        judge=JudgeResult(
            **card.model_dump(),
            kind="likelihood",
            training=JudgeTrainingCost(steps=400, seconds=130.5, samples=2048),
            kinds={"likelihood": card, "verdict": weak},
        ),
        recipe={"name": "scripted world", "seed": 0},
        fingerprints={"recipe": "0123456789ab", "generator": "scripted-generator"},
        machine={"cpus": 2},
        wandb={"id": "abc123", "mode": "offline"},
        seconds={"prepare": 31.0, "train": 224.1, "evaluate": 60.0},
        repeat=Repeat(
            command="stagebeam evaluate runs/world/recipe.yaml --output-dir runs/world-again",
            directory="/somewhere",
            commit="0" * 40,
            files=(RepeatFile(path="world/part-0.parquet", sha256="ab" * 32, rows=questions),),
            weights={"generator": RepeatWeights(folder="world/model", fingerprint="gen-1")},
            seeds={"search": 7},
            versions={"torch": "1.2.3"},
        ),
    )
    cases = cases_of(rows["stage_beam@4"], rows["greedy"], world.examples, store.traces())
    return results, cases
