"""Exporting a trained model, and what a checkpoint says of the rows that it was trained on."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from stagebeam.data.ledger import Ledger, Plan
from stagebeam.models.encoder import RowEncoder
from stagebeam.models.folder import write_folder
from stagebeam.storage import Place, RemotePath, files_below, remove_tree
from stagebeam.train_config import LoraConfig
from stagebeam.training.trainable import merged, save_adapter

_LEDGER_FILE = "ledger.json"
_CONFIG_FILE = "config.json"  # of transformers
_PREFIX = "model."  # where the objective keeps the model


def checkpoint_name(step: int, attempt: str) -> str:
    """A folder name; `attempt` keeps a restarted run from reusing one that was never committed."""
    return f"step-{step:08d}-{attempt}"


def write_ledger(ledger: Ledger, folder: Path) -> None:
    """Beside a checkpoint's weights."""
    (folder / _LEDGER_FILE).write_text(json.dumps(ledger.to_dict()))


def read_ledger(folder: Place) -> Ledger:
    """The ledger inside a checkpoint. Raises ValueError where it has none."""
    try:
        return Ledger.from_dict(json.loads((folder / _LEDGER_FILE).read_text()))
    except OSError:
        raise ValueError(f"The checkpoint {folder} has no {_LEDGER_FILE}.") from None


def start_step(plan: Plan, run_folder: Place) -> int:
    """Where the plan goes on after the checkpoint that Ray Train would resume from; 0 without one.

    Raises ValueError if that one was trained in another order of the rows.
    """
    latest = _committed(run_folder).get("latest_checkpoint_result")
    if not latest:
        return 0
    return read_ledger(run_folder / latest["checkpoint_dir_name"]).start_step(plan)


def remove_uncommitted(run_folder: Place) -> None:
    """Remove checkpoints that a killed run had not finished: Ray Train knows nothing of them."""
    committed = _committed(run_folder)
    results = [committed.get("latest_checkpoint_result"), *committed.get("checkpoint_results", ())]
    kept = {result["checkpoint_dir_name"] for result in results if result}
    for folder in run_folder.glob("step-*"):
        if folder.name not in kept:
            remove_tree(folder)


def _committed(run_folder: Place) -> dict[str, Any]:
    """What Ray Train has noted of a run's checkpoints; nothing where it has not."""
    snapshot = run_folder / "checkpoint_manager_snapshot.json"
    found: dict[str, Any] = json.loads(snapshot.read_text()) if snapshot.exists() else {}
    return found


def export(
    engine: Any, encoder: RowEncoder, folder: Place, recipe: str, lora: LoraConfig | None = None
) -> None:
    """Write a Hugging Face folder: whole weights, processor, chat template, and the recipe.

    Adapters are merged into the weights, and lie beside them in `adapter`. Called on every rank
    (under ZeRO-3 each gives its share); rank 0 writes. The folder appears whole or not at all; an
    older export of the same name is replaced.
    """
    if engine.zero_optimization_partition_weights():
        weights = engine._zero3_consolidated_16bit_state_dict()  # None except on rank 0
    else:
        weights = engine.module.state_dict()
    if dist.get_rank() == 0:
        partial = _beside(folder)
        model, weights = engine.module.model, _unwrapped(weights)
        if lora is not None:
            save_adapter(weights, model.peft_config["default"], partial / "adapter")
            weights = merged(weights, lora)
        write_folder(partial, model, encoder.processor, weights)
        (partial / "recipe.json").write_text(recipe)
        _publish(partial, folder)
    dist.barrier()


def _beside(folder: Place) -> Path:
    """An empty local folder in which `folder` is made."""
    if isinstance(folder, RemotePath):
        return Path(tempfile.mkdtemp(prefix="stagebeam-"))
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    return partial


def _publish(made: Path, folder: Place) -> None:
    """Give a folder its place, instead of what is there. In a store, which cannot rename it, it is
    no model while it has no config, which goes first and comes last."""
    if not isinstance(folder, RemotePath):
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
        return
    (folder / _CONFIG_FILE).unlink(missing_ok=True)
    remove_tree(folder)
    for file in sorted(files_below(made), key=lambda f: f.name == _CONFIG_FILE):
        (folder / file.relative_to(made)).upload(file)
    shutil.rmtree(made)


def _unwrapped(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    assert all(name.startswith(_PREFIX) for name in weights)
    return {name.removeprefix(_PREFIX): tensor for name, tensor in weights.items()}
