"""Generators and judges for the judge benchmark: trained in one process each, and kept.

Every model of a seed follows from the seed: initial weights, scenes, samples. A kept folder is
not made again.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import AutoProcessor

from jobs.benchmarks.judge_pairs import answer_pairs, stage_pairs
from jobs.benchmarks.mid_size import vocabulary
from jobs.benchmarks.teaching import teach
from stagebeam.data.preferences import Preference, first_fault, write_preferences
from stagebeam.data.sources.scenes import draw
from stagebeam.evaluation.question import prompt_of
from stagebeam.inference.transformers_engine import TransformersEngine
from stagebeam.inference.types import Candidate, GenerateRequest, Sampling
from stagebeam.models.encoder import Arrays, RowEncoder
from stagebeam.models.family import Family
from stagebeam.models.folder import write_folder
from stagebeam.models.load import Loaded, load
from stagebeam.models.tiny.build import build_tiny
from stagebeam.models.value_head import VALUE_HEAD_FILE
from stagebeam.records import Example
from stagebeam.search.seeds import candidate_seed, question_key
from stagebeam.source_config import SceneQuestions, ScenesSource
from stagebeam.stages import Stage
from stagebeam.training import objectives
from stagebeam.training.answers import Form, Reworder
from stagebeam.training.preference import PreferenceEncoder

Trained = Literal["longer", "pairs", "reward", "samples"]

ROWS = 32  # of a step, gold rows and both rows of each pair
GENERATOR_STEPS, GENERATOR_RATE = 1050, 3e-3
JUDGE_STEPS, JUDGE_RATE = 1000, 2e-3
SAMPLED_QUESTIONS, SAMPLES = 16_000, 2
FORKED_QUESTIONS, FORKS = 6_000, 4  # for pairs of samples
PAIR_WEIGHT = 0.3
_PAIRS_A_STEP = {"longer": 0, "pairs": 8, "reward": 12, "samples": 12}
# Scenes that nothing else has seen, by what they are for; the run's seed is added.
_TRAINING, _FURTHER, _SAMPLING, ASKING, CARD, _FORKING = (1000 * i for i in range(1, 7))
_AT_ONCE = 64

PairsOf = Callable[[Example, Sequence[str]], list[Preference]]


@dataclass(frozen=True, slots=True)
class Folder:
    """Where the models of one seed and task are kept."""

    root: Path
    seed: int
    task: SceneQuestions = "mixed"

    @property
    def path(self) -> Path:
        return home(self.root, self.task) / f"seed-{self.seed}"

    def model(self, name: str) -> Path:
        return self.path / name


def home(root: Path, task: SceneQuestions) -> Path:
    """Where everything of one task is kept."""
    return root if task == "mixed" else root / task


def scenes(purpose: int, seed: int, rows: int, task: SceneQuestions = "mixed") -> Iterator[Example]:
    """Drawn scenes of the quickstart's difficulty, or of another task."""
    return draw(_source(task, rows, purpose + seed))


def single(purpose: int, seed: int, rows: int, task: SceneQuestions = "mixed") -> Iterator[Example]:
    """Those of `rows` scenes that have one question."""
    return (example for example in scenes(purpose, seed, rows, task) if len(example.messages) == 2)


def _source(task: SceneQuestions, rows: int, seed: int) -> ScenesSource:
    return ScenesSource(rows=rows, seed=seed, difficulty=2, questions=task)


def words_of(task: SceneQuestions) -> list[str]:
    """Texts with every word of a task's scenes."""
    return vocabulary() if task == "mixed" else vocabulary(_source(task, 2048, 0))


def make_generator(folder: Folder, form: Form = "stages") -> Path:
    """Trained from scratch on gold answers, the same for every form but for how they are worded."""

    def train(partial: Path) -> None:
        base = folder.model("base")
        if not base.exists():
            base.parent.mkdir(parents=True, exist_ok=True)
            build_tiny(base, words_of(folder.task), seed=folder.seed, layers=4)
        learner = load(str(base), "cpu")
        objective = objectives.Supervised(learner.model, learner.family, learner.encoder)
        drawn = scenes(_TRAINING, folder.seed, GENERATOR_STEPS * ROWS, folder.task)
        examples = map(Reworder(form), drawn)
        teach(objective, _gold(learner, examples), GENERATOR_STEPS, GENERATOR_RATE)
        write_folder(partial, learner.model, AutoProcessor.from_pretrained(base))

    name = "generator" if form == "stages" else f"generator-{form}"
    return _kept(folder.model(name), train)


def make_pairs(folder: Folder) -> Path:
    """The generator's own first faults on questions that it was not trained on."""

    def sample(partial: Path) -> None:
        partial.mkdir()
        found = _sampled(folder, _SAMPLING, SAMPLED_QUESTIONS, SAMPLES, faults_of)
        write_preferences(partial / "pairs.parquet", asyncio.run(found))

    return _kept(folder.path / "faults", sample) / "pairs.parquet"


def make_sample_pairs(folder: Folder) -> Path:
    """The generator's own samples of a stage and of whole answers, right against wrong."""

    def of(example: Example, texts: Sequence[str]) -> list[Preference]:
        return stage_pairs(example, texts) + answer_pairs(example, texts)

    def sample(partial: Path) -> None:
        partial.mkdir()
        found = _sampled(folder, _FORKING, FORKED_QUESTIONS, FORKS, of)
        write_preferences(partial / "pairs.parquet", asyncio.run(found))

    return _kept(folder.path / "forks", sample) / "pairs.parquet"


def make_judge(folder: Folder, kind: Trained) -> Path:
    """The generator trained further: on gold answers, on its own faults too, or to tell the
    better of two texts by a number, of gold and fault or of two samples."""
    start = make_generator(folder)
    pairs = None
    if kind != "longer":
        pairs = make_sample_pairs(folder) if kind == "samples" else make_pairs(folder)

    def train(partial: Path) -> None:
        torch.manual_seed(folder.seed)
        learner = load(str(start), "cpu")
        examples = scenes(_FURTHER, folder.seed, JUDGE_STEPS * ROWS, folder.task)
        objective: Any
        if pairs is None:
            objective = objectives.Supervised(learner.model, learner.family, learner.encoder)
            batches = _gold(learner, examples)
        else:
            made = _preference if kind == "pairs" else Reward
            objective = made(learner.model, learner.family, learner.encoder)
            batches = _paired(learner, examples, pairs, _PAIRS_A_STEP[kind])
        teach(objective, batches, JUDGE_STEPS, JUDGE_RATE)
        write_folder(partial, learner.model, AutoProcessor.from_pretrained(start))
        if kind in ("reward", "samples"):
            save_file(objective.head.state_dict(), partial / VALUE_HEAD_FILE)

    return _kept(folder.model(kind), train)


class Reward(objectives.Supervised):
    """A value head behind a text's last token: the chosen text's number must be the larger, and
    gold answers stay likely. Roles of rows as in `Preference`."""

    def __init__(self, model: Any, family: Family, encoder: RowEncoder) -> None:
        super().__init__(model, family, encoder)
        self.head = torch.nn.Linear(model.config.text_config.hidden_size, 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)
        model.lm_head.register_forward_pre_hook(self._keep)
        self._hidden: torch.Tensor | None = None  # [B, T, D], of the last pass

    def _keep(self, module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self._hidden = args[0]

    def terms(self, **batch: torch.Tensor) -> torch.Tensor:
        role = batch["role"]
        logprobs = self.row_logprobs(**batch)
        assert self._hidden is not None
        places = torch.arange(batch["labels"].shape[1])
        last = torch.where(batch["labels"] != objectives.IGNORE, places, 0).argmax(1)  # [B]
        values = self.head(self._hidden[torch.arange(len(last)), last])[:, 0]
        margins = values[role == objectives.CHOSEN] - values[role == objectives.REJECTED]
        pairs = -functional.logsigmoid(margins).sum()
        return torch.stack((-logprobs[role == objectives.GOLD].sum(), pairs))

    def weights(self, **batch: torch.Tensor) -> torch.Tensor:
        role, labels = batch["role"], batch["labels"]
        tokens = (labels[role == objectives.GOLD][:, 1:] != objectives.IGNORE).sum()
        return torch.stack((tokens, (role == objectives.CHOSEN).sum()))


def _preference(model: Any, family: Family, encoder: RowEncoder) -> objectives.Preference:
    return objectives.Preference(model, family, encoder, PAIR_WEIGHT)


def _gold(learner: Loaded, examples: Iterator[Example]) -> Iterator[Arrays]:
    while rows := list(islice(examples, ROWS)):
        yield learner.encoder(rows)[0]


def _paired(
    learner: Loaded, examples: Iterator[Example], pairs: Path, count: int
) -> Iterator[Arrays]:
    gold = ROWS - 2 * count
    encoder = PreferenceEncoder(learner.encoder, pairs, count / gold)
    while rows := list(islice(examples, gold)):
        yield encoder(rows)[0]


async def _sampled(
    folder: Folder, purpose: int, questions: int, samples: int, pairs_of: PairsOf
) -> list[Preference]:
    """What `pairs_of` makes of the generator's samples on questions of their own."""
    engine = TransformersEngine(
        load(str(folder.model("generator")), "cpu"), max_rows=2 * _AT_ONCE, kv_bytes=256 << 20
    )
    slots = asyncio.Semaphore(_AT_ONCE)

    async def of(example: Example) -> list[Preference]:
        async with slots:
            texts = await sample_texts(engine, example, folder.seed, samples)
        return pairs_of(example, texts)

    try:
        asked = single(purpose, folder.seed, questions, folder.task)
        found = await asyncio.gather(*map(of, asked))
    finally:
        engine.close()
    return [pair for pairs in found for pair in pairs]


def faults_of(example: Example, texts: Sequence[str]) -> list[Preference]:
    """Gold stages against the first faults of samples."""
    found = [first_fault(example, text) for text in dict.fromkeys(texts)]
    return [fault for fault in found if fault is not None]


async def sample_texts(
    engine: TransformersEngine, example: Example, seed: int, count: int
) -> list[str]:
    """Whole answers at temperature 1."""
    prompt = prompt_of(example)
    key = question_key(prompt)
    seeds = tuple(candidate_seed(seed, key, "JUDGE_TRAINING", i) for i in range(count))
    request = GenerateRequest(
        prompt, "", (Stage.CONCLUSION.close_tag,), seeds, Sampling(1.0, 1.0, 160)
    )
    return [c.text async for c in engine.propose(request) if isinstance(c, Candidate)]


def _kept(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, made if it is not there, whole or not at all; its CPU seconds beside it."""
    if folder.exists():
        return folder
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    began = time.process_time()
    make(partial)
    folder.with_name(f"{folder.name}.cpu_seconds").write_text(f"{time.process_time() - began:.0f}")
    partial.rename(folder)
    return folder
