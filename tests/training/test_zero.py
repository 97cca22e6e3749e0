"""DeepSpeed ZeRO-3 over gloo against the plainest training there is: one process, torch's AdamW."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import zero_rank
from ranks import launch

from stagebeam.models.encoder import IGNORE, RowEncoder
from stagebeam.models.load import load
from stagebeam.models.registry import FAMILIES, family_of
from stagebeam.models.tiny.build import build_tiny
from stagebeam.records import Example
from stagebeam.train_config import TrainConfig
from stagebeam.training.objectives import Supervised

# Ranks sum float32 in another order, and AdamW divides by the gradient's size, so where a gradient
# is nearly zero a rounding error moves the weight visibly. Seen: 1e-7 in losses, 5e-6 in weights.
CLOSE = 1e-5  # relative, of losses
CLOSE_NORM = 1e-4  # relative, of gradients' norms
CLOSE_WEIGHT = 1e-4  # absolute; a tenth of the learning rate


def config(output: Path, world: int, norm: float, accumulation: int = 1) -> TrainConfig:
    return TrainConfig(
        output_dir=output,
        num_workers=world,
        use_gpu=False,
        zero_stage=3,
        global_batch_size=4,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=2,
        weight_decay=0.05,
        max_grad_norm=norm,
        checkpoint_every=zero_rank.SAVED,
    )


def start(run: Path, model: Path, train: TrainConfig) -> list[dict[str, Any]]:
    """Run every rank to its end; returns what each wrote."""
    settings = {
        "model": {"path": str(model), "dtype": "float32"},
        "train": train.model_dump(mode="json"),
    }
    return launch(zero_rank.__file__, run, settings, train.num_workers)


@dataclass(frozen=True)
class Plain:
    """What training without DeepSpeed, ranks or accumulation comes to."""

    losses: list[float]
    norms: list[float]  # of gradients, before clipping
    clip: float
    weights: dict[str, torch.Tensor]


def plain(model: Path) -> Plain:
    loaded = load(str(model), "cpu")
    loaded.model.train()
    objective = Supervised(loaded.model, loaded.family, loaded.encoder)
    optimizer = torch.optim.AdamW(objective.parameters(), weight_decay=0.05)
    losses, norms, clip = [], [], torch.inf
    # warm-up in two steps, then the cosine's first value, which is the peak
    for step, rate in enumerate((5e-4, 1e-3, 1e-3)):
        arrays = loaded.encoder(zero_rank.step_examples(step))[0]
        batch = {key: torch.from_numpy(value) for key, value in arrays.items()}
        tokens = (batch["labels"] != IGNORE).sum()
        loss = objective(**batch).sum() / tokens
        optimizer.zero_grad()
        loss.backward()
        for parameter in objective.parameters():
            # DeepSpeed decays weights that the loss does not reach, where AdamW leaves them.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.get_total_norm([p.grad for p in objective.parameters()])
        clip = 0.9 * norm.item() if step == 0 else clip  # so the first step is clipped
        torch.nn.utils.clip_grad_norm_(objective.parameters(), clip)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm.item())
    return Plain(losses, norms, clip, loaded.model.state_dict())


@pytest.fixture(params=sorted(FAMILIES))
def model(request: pytest.FixtureRequest, scenes: list[Example], tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    texts = [message.text for example in scenes for message in example.messages]
    build_tiny(folder, texts, layers=2, family=request.param)
    return folder


def test_one_rank_without_images_changes_nothing(model: Path, tmp_path: Path) -> None:
    """Losses, gradients and weights are those of one plain process, in every family. The first
    rank has rows of one and of two images, the second has none at all."""
    alone = plain(model)
    encoder = family_of(str(model)).encoder(str(model))
    train = config(tmp_path, world=2, norm=alone.clip)
    for rank in start(tmp_path / "two-ranks", model, train):
        expect(rank, alone, encoder)
    expect_weights(tmp_path / "two-ranks", alone, encoder)


def test_micro_batches_change_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    alone = plain(tiny_folder)
    encoder = family_of(str(tiny_folder)).encoder(str(tiny_folder))
    train = config(tmp_path, world=1, norm=alone.clip, accumulation=2)
    (rank,) = start(tmp_path / "one-rank", tiny_folder, train)
    expect(rank, alone, encoder)
    expect_weights(tmp_path / "one-rank", alone, encoder)


def expect(seen: dict[str, Any], alone: Plain, encoder: RowEncoder) -> None:
    reports = seen["reports"]
    assert [r["loss"] for r in reports] == pytest.approx(alone.losses, rel=CLOSE)
    assert [r["grad_norm"] for r in reports] == pytest.approx(alone.norms, rel=CLOSE_NORM)
    assert [r["step"] for r in reports] == [1, 2, 3]
    assert [r["learning_rate"] for r in reports] == pytest.approx([5e-4, 1e-3, 1e-3])
    labels = [encoder(zero_rank.step_examples(step))[0]["labels"] for step in range(3)]
    assert [r["tokens"] for r in reports] == [(rows != IGNORE).sum() for rows in labels]
    # back to the checkpoint, the last step comes out the same to the last digit
    assert seen["saved"] == [zero_rank.SAVED]
    assert [r["loss"] for r in seen["resumed"]] == [reports[-1]["loss"]]


def expect_weights(run: Path, alone: Plain, encoder: RowEncoder) -> None:
    exported = load(str(run / "export"), "cpu")
    for name, trained in exported.model.state_dict().items():
        torch.testing.assert_close(
            trained, alone.weights[name], rtol=0, atol=CLOSE_WEIGHT, msg=name
        )
    assert exported.encoder.ids("red") == encoder.ids("red")
    leftovers = [p.name for p in run.iterdir() if "partial" in p.name]
    assert not leftovers and (run / "export" / "recipe.json").exists()
