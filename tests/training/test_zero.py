"""DeepSpeed ZeRO-3 over gloo against the plainest training there is: one process, torch's AdamW."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import zero_rank

from stagebeam.models.encoder import IGNORE
from stagebeam.models.families.mllama import MllamaEncoder
from stagebeam.models.load import load
from stagebeam.train_config import TrainConfig
from stagebeam.training.objectives import Supervised

# Ranks sum float32 in another order, and AdamW divides by the gradient's size, so where a gradient
# is nearly zero a rounding error moves the weight visibly. Seen: 1e-7 in losses, 5e-6 in weights.
CLOSE = 1e-5  # relative, of losses
CLOSE_WEIGHT = 1e-4  # absolute; a tenth of the learning rate
TIME_LIMIT = 240  # seconds; a rank that waits for parameters the other never gathers hangs


def config(output: Path, world: int, accumulation: int = 1) -> TrainConfig:
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
        # Norms are 4.1, 3.6, 3.3: the first step alone is clipped. AdamW hardly notices a gradient
        # that is scaled wrongly, but then other steps would be clipped.
        max_grad_norm=3.8,
        checkpoint_every=zero_rank.SAVED,
    )


def launch(folder: Path, model: Path, world: int, accumulation: int = 1) -> list[dict[str, Any]]:
    """Run every rank to its end; returns what each wrote."""
    folder.mkdir()
    train = config(folder, world, accumulation).model_dump(mode="json")
    run = {"model": {"path": str(model), "dtype": "float32"}, "train": train}
    (folder / "run.json").write_text(json.dumps(run))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        # the extension that DeepSpeed may have to build needs ninja, which lies beside Python
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "LOCAL_SIZE": str(world),
    }
    command = [sys.executable, zero_rank.__file__, str(folder)]
    logs = [(folder / f"rank-{rank}.log").open("w+") for rank in range(world)]
    ranks = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        for rank, log in zip(ranks, logs, strict=True):
            code = rank.wait(TIME_LIMIT)
            log.seek(0)
            assert code == 0, log.read()[-3000:]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
        for log in logs:
            log.close()
    return [json.loads((folder / f"rank-{r}.json").read_text()) for r in range(world)]


def plain(model: Path) -> tuple[list[float], dict[str, torch.Tensor], list[float]]:
    """Losses, final weights and gradient norms without DeepSpeed, ranks or accumulation."""
    loaded = load(str(model), "cpu")
    train = config(Path("unused"), world=1)
    loaded.model.train()
    objective = Supervised(loaded.model, loaded.family, loaded.encoder)
    optimizer = torch.optim.AdamW(objective.parameters(), weight_decay=train.weight_decay)
    losses, norms = [], []
    # warm-up in two steps, then the cosine's first value, which is the peak
    for step, rate in enumerate((5e-4, 1e-3, 1e-3)):
        arrays = loaded.encoder(zero_rank.step_examples(step))[0]
        batch = {key: torch.from_numpy(value) for key, value in arrays.items()}
        tokens = (batch["labels"] != IGNORE).sum()
        loss = objective(**batch).sum() / tokens
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), train.max_grad_norm)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm.item())
    return losses, loaded.model.state_dict(), norms


def test_ranks_partitions_and_accumulation_change_nothing(
    tiny_folder: Path, tmp_path: Path
) -> None:
    losses, weights, norms = plain(tiny_folder)
    assert norms[0] > config(tmp_path, world=1).max_grad_norm > max(norms[1:])
    two = launch(tmp_path / "two-ranks", tiny_folder, world=2)
    one = launch(tmp_path / "one-rank", tiny_folder, world=1, accumulation=2)
    encoder = MllamaEncoder(str(tiny_folder))
    blind = zero_rank.micro_batches(encoder, 0, rank=1, world=2, accumulation=1)[0]
    assert not blind["image_mask"].any()  # one rank has rows with text only

    for seen in (*two, *one):
        reports = seen["reports"]
        assert [r["loss"] for r in reports] == pytest.approx(losses, rel=CLOSE)
        assert [r["step"] for r in reports] == [1, 2, 3]
        assert [r["learning_rate"] for r in reports] == pytest.approx([5e-4, 1e-3, 1e-3])
        labels = [encoder(zero_rank.step_examples(step))[0]["labels"] for step in range(3)]
        assert [r["tokens"] for r in reports] == [(rows != IGNORE).sum() for rows in labels]
        # back to the checkpoint, the last step comes out the same to the last digit
        assert seen["saved"] == [zero_rank.SAVED]
        assert [r["loss"] for r in seen["resumed"]] == [reports[-1]["loss"]]

    for run in ("two-ranks", "one-rank"):
        exported = load(str(tmp_path / run / "export"), "cpu")
        for name, trained in exported.model.state_dict().items():
            torch.testing.assert_close(trained, weights[name], rtol=0, atol=CLOSE_WEIGHT, msg=name)
        assert exported.encoder.ids("red") == encoder.ids("red")
        leftovers = [p.name for p in (tmp_path / run).iterdir() if "partial" in p.name]
        assert not leftovers and (tmp_path / run / "export" / "recipe.json").exists()
