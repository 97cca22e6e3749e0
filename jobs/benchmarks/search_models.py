"""The models that the search benchmark asks: trained until they write whole stages, and kept."""

from __future__ import annotations

import hashlib
import inspect
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
import transformers
from transformers import AutoProcessor

from jobs.benchmarks.mid_size import build_mid_size, vocabulary
from jobs.benchmarks.teaching import teach
from stagebeam.data.sources.scenes import draw
from stagebeam.models.folder import write_folder
from stagebeam.models.load import Loaded, load
from stagebeam.models.tiny.build import build_tiny
from stagebeam.records import Example
from stagebeam.source_config import ScenesSource
from stagebeam.training.objectives import Supervised

QUICKSTART = Path("runs/quickstart")
KEPT = Path("runs/bench/models")
_QUESTION_SEED = 1  # other scenes than those that are trained on


@dataclass(frozen=True, slots=True)
class Lesson:
    """A model's size and how long it is trained on drawn scenes."""

    name: str
    layers: int
    steps: int
    rows_a_step: int
    learning_rate: float
    width: int | None = None  # of the decoder; None is the tiny model's

    def fingerprint(self) -> str:
        """Twelve hex digits of all that the trained model follows from."""
        versions = [torch.__version__, transformers.__version__]
        parts = [
            asdict(self),
            versions,
            vocabulary(),
            inspect.getsource(_teach),
            inspect.getsource(teach),
        ]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


TINY = Lesson("tiny", layers=4, steps=160, rows_a_step=32, learning_rate=3e-3)
MID_SIZE = Lesson("mid-size", layers=8, steps=64, rows_a_step=8, learning_rate=1e-3, width=512)


@dataclass(frozen=True, slots=True)
class Subject:
    """Two models that answer and judge; of one folder, they are one. `stock` are the same weights
    once more: an engine changes how its model attends, and the reference must not gain or lose by
    that."""

    name: str
    made: str  # how they came to be
    generator: Loaded
    judge: Loaded
    stock: tuple[Loaded, Loaded]  # the reference's generator and judge

    @property
    def params(self) -> int:
        """Weights of the generator."""
        return sum(parameter.numel() for parameter in self.generator.model.parameters())


def tiny_subject(quickstart: Path = QUICKSTART, kept: Path = KEPT) -> Subject:
    """The quickstart's generator and judge where they are trained, else a tiny model of our own."""
    generator, judge = (quickstart / part / "model" for part in ("generator", "judge"))
    if generator.exists() and judge.exists():
        made = "the quickstart's generator and judge"
        return _subject("tiny", made, generator, judge)
    return taught_subject(TINY, kept)


def taught_subject(lesson: Lesson, kept: Path = KEPT) -> Subject:
    """One model that generates and judges, trained as the lesson says or found in `kept`."""
    folder = taught_folder(lesson, kept)
    made = f"trained for {lesson.steps} steps of {lesson.rows_a_step} rows; it judges itself"
    return _subject(lesson.name, made, folder, folder)


def _subject(name: str, made: str, generator: Path, judge: Path) -> Subject:
    def pair() -> tuple[Loaded, Loaded]:
        first = load(str(generator), "cpu")
        return first, first if judge == generator else load(str(judge), "cpu")

    return Subject(name, made, *pair(), stock=pair())


def taught_folder(lesson: Lesson, kept: Path) -> Path:
    """The trained model's folder; it appears whole or not at all."""
    folder = kept / f"{lesson.name}-{lesson.fingerprint()}"
    if folder.exists():
        return folder
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        if lesson.width is None:
            build_tiny(base, vocabulary(), layers=lesson.layers)
        else:
            build_mid_size(base, lesson.width, lesson.layers)
        learner = load(str(base), "cpu")
        _teach(learner, lesson)
        write_folder(partial, learner.model, AutoProcessor.from_pretrained(base))
    partial.rename(folder)
    return folder


def _teach(learner: Loaded, lesson: Lesson) -> None:
    objective = Supervised(learner.model, learner.family, learner.encoder)
    rows = draw(ScenesSource(rows=lesson.steps * lesson.rows_a_step))
    batches = (
        learner.encoder(list(islice(rows, lesson.rows_a_step)))[0] for _ in range(lesson.steps)
    )
    teach(objective, batches, lesson.steps, lesson.learning_rate)


def unseen_questions(count: int) -> Sequence[Example]:
    """Scenes with an image and one question, that no lesson has shown."""
    source = ScenesSource(rows=100 * count, seed=_QUESTION_SEED)
    asked = (scene for scene in draw(source) if scene.images and len(scene.messages) == 2)
    return list(islice(asked, count))
