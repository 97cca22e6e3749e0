"""A model that has a few scenes by heart, and engines that are closed when a test ends."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stagebeam.inference.transformers_engine import TransformersEngine
from stagebeam.models.load import Loaded, load
from stagebeam.models.tiny.build import build_tiny
from stagebeam.records import Example, Message
from stagebeam.stages import STAGES, parse, render
from stagebeam.training.objectives import Supervised

sys.path.append(str(Path(__file__).parent))

from asking import MakeEngine

FAMILIES = ("mllama", "llava", "llava_next", "qwen2_5_vl")


@pytest.fixture(scope="module", params=FAMILIES)
def built(
    request: pytest.FixtureRequest, scenes: list[Example], tmp_path_factory: pytest.TempPathFactory
) -> Loaded:
    """An untrained tiny model of every family."""
    folder: Path = tmp_path_factory.mktemp("built") / request.param
    texts = [message.text for example in scenes for message in example.messages]
    build_tiny(folder, texts, family=request.param)
    return load(str(folder), "cpu")


@pytest.fixture(scope="session")
def known(scenes: list[Example]) -> list[Example]:
    """What `taught` has seen: four with an image, then two without."""
    single = [e for e in scenes if len(e.messages) == 2]
    return [e for e in single if e.images][:4] + [e for e in single if not e.images][:2]


@pytest.fixture(scope="session")
def taught(tiny_folder: Path, known: list[Example]) -> Loaded:
    """Writes whole stages, and answers what is `known` word for word."""
    return teach(tiny_folder, known)


@pytest.fixture(scope="session")
def wavering(tiny_folder: Path, known: list[Example]) -> Loaded:
    """Writes whole stages, and of each has learnt several for the same question."""
    luck, (question, *_) = random.Random(0), known
    bodies = [parse(example.messages[-1].text).bodies for example in known]
    mixed = [render({stage: luck.choice(bodies)[stage] for stage in STAGES}) for _ in range(16)]
    asked = question.messages[0]
    rows = [replace(question, messages=(asked, Message("assistant", text))) for text in mixed]
    return teach(tiny_folder, rows, loss=0.7)


def teach(folder: Path, rows: list[Example], loss: float = 0.1) -> Loaded:
    """A model that has the rows by heart, as far as they agree."""
    learner = load(str(folder), "cpu")
    objective = Supervised(learner.model, learner.family, learner.encoder)
    batch = {key: torch.from_numpy(value) for key, value in learner.encoder(rows)[0].items()}
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3, betas=(0.9, 0.95))
    for _ in range(40):
        left = objective(**batch)[0] / objective.weights(**batch)[0]
        optimizer.zero_grad()
        left.backward()
        optimizer.step()
    assert left.item() < loss
    return learner


@pytest.fixture
def make_engine() -> Iterator[MakeEngine]:
    engines: list[TransformersEngine] = []

    def make(
        loaded: Loaded, max_rows: int = 64, kv_bytes: int = 64 << 20, draft_tokens: int = 8
    ) -> TransformersEngine:
        sizes = {"max_rows": max_rows, "kv_bytes": kv_bytes, "draft_tokens": draft_tokens}
        engines.append(TransformersEngine(loaded, **sizes))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
