"""How a global batch is divided over ranks and micro-batches, and how ZeRO divides the model, leave
the loss curve of the real job as it is: that of one plain process with torch's AdamW."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import BATCH, CLOSE, STEPS, Training, prepared, write_recipe

from jobs.train import plan_of, required_train
from stagebeam.data.layout import TRAIN_SPLIT
from stagebeam.data.shards import ShardReader
from stagebeam.models.encoder import IGNORE
from stagebeam.models.load import load
from stagebeam.recipe import load_recipe
from stagebeam.training.objectives import Supervised

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLOSE_NORM = 1e-4  # relative, of gradients' norms

DIVISIONS: dict[str, dict[str, int]] = {
    "batch-8-x-1": {"num_workers": 1},
    "batch-2-x-4": {"num_workers": 1, "gradient_accumulation_steps": 4},
    "two-ranks": {"num_workers": 2},
    "two-ranks-batch-2-x-2": {"num_workers": 2, "gradient_accumulation_steps": 2},
    "stage-0": {"num_workers": 2, "zero_stage": 0},
    "stage-1": {"num_workers": 2, "zero_stage": 1},
    "stage-2": {"num_workers": 2, "zero_stage": 2, "gradient_accumulation_steps": 2},
}


@dataclass(frozen=True)
class Plain:
    losses: list[float]
    norms: list[float]  # of gradients, before clipping
    weights: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with prepared() as folder:
        yield folder


@pytest.fixture(scope="module")
def plain(folder: Path) -> Plain:
    """No DeepSpeed, no Ray, no ranks, no micro-batches."""
    recipe = load_recipe(write_recipe(folder, "plain"))
    config = required_train(recipe)
    plan = plan_of(config, recipe.data, recipe.seed)
    rows = ShardReader(recipe.data.shards, TRAIN_SPLIT)
    loaded = load(recipe.model.path, "cpu")
    loaded.model.train()
    objective = Supervised(loaded.model, loaded.family, loaded.encoder)
    optimizer = torch.optim.AdamW(
        objective.parameters(), betas=config.betas, weight_decay=config.weight_decay
    )
    losses, norms = [], []
    for step in range(STEPS):
        examples = rows.rows(plan.step_rows(step))
        assert len(examples) == BATCH
        arrays, refused = loaded.encoder(examples)
        assert not refused
        batch: dict[str, Any] = {key: torch.from_numpy(value) for key, value in arrays.items()}
        loss = objective(**batch).sum() / (batch["labels"] != IGNORE).sum()
        optimizer.zero_grad()
        loss.backward()
        for parameter in objective.parameters():
            # DeepSpeed decays weights that the loss does not reach, where AdamW leaves them.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), config.max_grad_norm)
        optimizer.param_groups[0]["lr"] = config.learning_rate * share_of_rate(step)
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm.item())
    return Plain(losses, norms, loaded.model.state_dict())


def share_of_rate(step: int) -> float:
    """Up in four steps, then half a cosine down to a twentieth."""
    if step < 4:
        return (step + 1) / 4
    return 0.05 + 0.95 * (1 + math.cos(math.pi * (step - 4) / (STEPS - 4))) / 2


@pytest.mark.parametrize("division", DIVISIONS)
def test_a_division_of_the_batch_or_the_model_changes_no_loss(
    division: str, folder: Path, plain: Plain
) -> None:
    run = Training(write_recipe(folder, division, **DIVISIONS[division]))
    try:
        run.complete()
    finally:
        run.kill()
    steps = run.steps()
    assert [step["train/step"] for step in steps] == list(range(1, STEPS + 1))
    print(division, *(f"{name} {gap:.1e}" for name, gap in gaps(run, plain).items()))
    assert run.losses() == pytest.approx(plain.losses, rel=CLOSE)
    assert [s["train/grad_norm"] for s in steps] == pytest.approx(plain.norms, rel=CLOSE_NORM)


def gaps(run: Training, plain: Plain) -> dict[str, float]:
    """The largest differences, for whoever wants to see what the tolerances leave."""
    told = run.steps()
    losses = [abs(a["train/loss"] / b - 1) for a, b in zip(told, plain.losses, strict=True)]
    norms = [abs(a["train/grad_norm"] / b - 1) for a, b in zip(told, plain.norms, strict=True)]
    weights = load(str(run.output / "model"), "cpu").model.state_dict()
    far = max(float((w - plain.weights[name]).abs().max()) for name, w in weights.items())
    return {"losses": max(losses), "norms": max(norms), "weights": far}
