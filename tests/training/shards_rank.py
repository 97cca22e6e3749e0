"""One rank that trains, takes snapshots and goes on from them: `python shards_rank.py FOLDER`.

FOLDER/run.json holds the model's path and scenarios, each with an engine of its own, one after the
other; what came of each goes to `rank-N.json` under its name.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import zero_rank
from ranks import leave

from stagebeam.models.registry import family_of
from stagebeam.recipe import ModelConfig
from stagebeam.train_config import TrainConfig
from stagebeam.training.loop import make_engine
from stagebeam.training.objectives import Supervised
from stagebeam.training.shards import restore, snapshot
from stagebeam.training.zero import deepspeed_settings, load_partitioned

STEPS = 4
SAVED = 2  # the step after which a snapshot is taken, and one more at the end
LEARNING_RATE = 1e-3


def make(path: str, scenario: dict[str, Any], folder: Path) -> Any:
    """An engine at the scenario's stage."""
    world = dist.get_world_size()
    model_config = ModelConfig(path=path, dtype=scenario["dtype"])
    train = TrainConfig(
        output_dir=folder,
        num_workers=world,
        use_gpu=False,
        zero_stage=scenario["zero_stage"],
        offload=scenario["offload"],
        global_batch_size=4,
        learning_rate=LEARNING_RATE,
        weight_decay=0.05,
    )
    settings = deepspeed_settings(model_config, train)
    # Some parameters of the tiny model stay gathered between steps, and some do not.
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 1000
    family = family_of(path)
    model = load_partitioned(path, model_config.dtype, settings)
    for name, param in model.named_parameters():
        param.requires_grad_(scenario["frozen"] is None or scenario["frozen"] not in name)
    return make_engine(Supervised(model, family, family.encoder(path)), train, settings)


def take_step(engine: Any, encoder: Any, step: int) -> float:
    """Train on this rank's part of a global batch of four; returns the loss of all of it."""
    rank, world = dist.get_rank(), dist.get_world_size()
    arrays = encoder(zero_rank.step_examples(step)[rank::world])[0]
    batch = {key: torch.tensor(value) for key, value in arrays.items()}
    weight = engine.module.weights(**batch).double()
    dist.all_reduce(weight)
    terms = engine(**batch)
    engine.backward((terms * world / weight).sum().float())
    engine.step()
    total = terms.detach().double()
    dist.all_reduce(total)
    return float((total / weight).sum())


def train(engine: Any, encoder: Any, scenario: dict[str, Any]) -> dict[str, Any]:
    """Train to the end, from the scenario's checkpoint if it has one."""
    start = restore(engine, Path(scenario["load"])) if scenario["load"] else 0
    taken, losses = {}, []
    for step in range(start, STEPS):
        losses.append(take_step(engine, encoder, step))
        if step + 1 in (SAVED, STEPS):
            taken[step + 1] = snapshot(engine, step + 1)
    for step, kept in taken.items():  # after later steps: it must not matter
        folder = Path(scenario["save"]) / str(step)
        folder.mkdir(parents=True, exist_ok=True)
        kept.write(folder)
    dist.barrier()
    return {"start": start, "losses": losses}


def refuse(engine: Any, encoder: Any, scenario: dict[str, Any]) -> dict[str, Any]:
    """Try checkpoints that cannot be used, each rank its own folder; then one that can."""
    take_step(engine, encoder, 0)
    before = snapshot(engine, 1)
    sentences = []
    for folders in scenario["refused"]:
        try:
            restore(engine, Path(folders[dist.get_rank()]))
            sentences.append("")
        except ValueError as error:
            sentences.append(str(error))
    after = snapshot(engine, 1)
    same = all(torch.equal(after.tensors[key], kept) for key, kept in before.tensors.items())
    take_step(engine, encoder, STEPS)  # other rows than the checkpoint saw
    start = restore(engine, Path(scenario["load"]))
    return {
        "sentences": sentences,
        "unchanged": same and before.header == after.header,
        "next_loss": take_step(engine, encoder, start),
    }


def main(folder: Path) -> None:
    run = json.loads((folder / "run.json").read_text())
    dist.init_process_group("gloo")
    encoder = family_of(run["model"]).encoder(run["model"])
    seen = {}
    for name, scenario in run["scenarios"].items():
        engine = make(run["model"], scenario, folder)
        seen[name] = (refuse if "refused" in scenario else train)(engine, encoder, scenario)
        engine.destroy()
    (folder / f"rank-{dist.get_rank()}.json").write_text(json.dumps(seen))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
