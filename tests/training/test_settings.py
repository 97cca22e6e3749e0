"""DeepSpeed's settings, checkpoint names, and how a task's stream becomes steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.torch import load_file, save_file

from stagebeam.data.ledger import Ledger, Plan
from stagebeam.data.parcel import MicroBatch, Parcel, pack
from stagebeam.models.load import Loaded
from stagebeam.recipe import ModelConfig
from stagebeam.train_config import TrainConfig
from stagebeam.training.checkpoint import checkpoint_name, start_step, write_ledger
from stagebeam.training.objectives import Preference, Supervised
from stagebeam.training.tasks import PreferenceTask, SupervisedTask
from stagebeam.training.zero import deepspeed_settings, load_partitioned


def settings(dtype: Any = "float32", **changes: Any) -> dict[str, Any]:
    train = TrainConfig(output_dir=Path("unused"), **changes)
    model = ModelConfig(path="unused", dtype=dtype)
    return deepspeed_settings(model, train)


def test_the_micro_batch_is_the_global_batch_over_ranks_and_accumulation() -> None:
    made = settings(global_batch_size=48, num_workers=4, gradient_accumulation_steps=3)
    assert made["train_micro_batch_size_per_gpu"] == 4
    assert made["gradient_accumulation_steps"] == 3


def test_precision_stage_and_clipping_come_from_the_recipe() -> None:
    made = settings("bfloat16", zero_stage=3, max_grad_norm=0.5)
    assert made["bf16"] == {"enabled": True} and made["gradient_clipping"] == 0.5
    zero = made["zero_optimization"]
    assert zero["stage"] == 3 and zero["overlap_comm"]
    assert zero["stage3_gather_16bit_weights_on_model_save"]  # or else nothing could be exported
    made = settings("float32", zero_stage=1, use_gpu=False)
    assert made["bf16"] == {"enabled": False}
    assert made["zero_optimization"]["stage"] == 1
    assert "overlap_comm" not in made["zero_optimization"]  # a CPU has no streams to overlap


def test_a_model_with_a_missing_weight_is_not_trained(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    del weights[next(name for name in weights if name.endswith("lm_head.weight"))]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing_keys.*lm_head"):
        load_partitioned(str(folder), "float32", settings(zero_stage=1, use_gpu=False))


def test_checkpoints_sort_by_step_and_never_share_a_name() -> None:
    name = checkpoint_name(1200, "a1b2c3")
    assert checkpoint_name(1200, "other") != name
    assert sorted([checkpoint_name(1000, "a"), checkpoint_name(200, "b")])[0].startswith(
        checkpoint_name(200, "")
    )


def test_a_run_goes_on_after_the_checkpoint_that_was_committed(tmp_path: Path) -> None:
    plan = Plan(rows=80, global_batch_size=8, world_size=2, epochs=9)
    assert start_step(plan, tmp_path) == 0
    snapshot = tmp_path / "checkpoint_manager_snapshot.json"
    snapshot.write_text(json.dumps({"latest_checkpoint_result": None}))
    assert start_step(plan, tmp_path) == 0
    latest = {"checkpoint_dir_name": checkpoint_name(40, "abc")}
    snapshot.write_text(json.dumps({"latest_checkpoint_result": latest}))
    with pytest.raises(ValueError, match=r"has no ledger\.json"):
        start_step(plan, tmp_path)
    folder = tmp_path / checkpoint_name(40, "abc")
    folder.mkdir()
    write_ledger(Ledger.after(plan, 40), folder)
    assert start_step(replace(plan, world_size=1), tmp_path) == 40
    with pytest.raises(ValueError, match="another seed: it cannot be continued"):
        start_step(replace(plan, seed=1), tmp_path)


class _Shard:
    """What a rank reads, as the stream sends it."""

    def __init__(self, plan: Plan, rank: int, start: int) -> None:
        self._plan, self._rank, self._start = plan, rank, start

    def _refused(self, rows: np.ndarray) -> dict[str, str]:
        last = self._plan.rank_rows(self._plan.total_steps - 1, self._rank, 1)
        return {str(rows[0]): "too long"} if rows[0] == last[0] else {}

    def iter_batches(self, **_: object) -> Iterator[pa.Table]:
        for step in range(self._start, self._plan.total_steps):
            micro_batches = []
            for micro in range(self._plan.gradient_accumulation_steps):
                rows = self._plan.rank_rows(step, self._rank, micro)
                arrays, refused = {"input_ids": np.array(rows)}, self._refused(rows)
                micro_batches.append(MicroBatch(step, micro, arrays, refused, [str(rows[0])]))
            yield pack(Parcel(step, self._rank, micro_batches))


def test_a_step_is_all_of_a_ranks_micro_batches(loaded: Loaded, tmp_path: Path) -> None:
    plan = Plan(rows=24, global_batch_size=8, world_size=2, gradient_accumulation_steps=2)
    task = SupervisedTask(shards=tmp_path, plan=plan, encoder=loaded.encoder)
    told: list[dict[str, str]] = []
    steps = list(task.steps(_Shard(plan, 1, 1), 1, 1, told.append))
    assert told == [{str(plan.rank_rows(2, 1, 1)[0]): "too long"}]
    assert [len(step) for step in steps] == [2, 2]
    for number, step in enumerate(steps, start=1):
        for micro, batch in enumerate(step):
            assert batch.arrays["input_ids"].tolist() == plan.rank_rows(number, 1, micro).tolist()


def test_a_task_says_what_is_minimised(loaded: Loaded, tmp_path: Path) -> None:
    plan = Plan(rows=8, global_batch_size=8, world_size=1)
    supervised = SupervisedTask(shards=tmp_path, plan=plan, encoder=loaded.encoder)
    assert type(supervised.objective(loaded.model, loaded.family)) is Supervised
    judge = PreferenceTask(
        shards=tmp_path,
        plan=plan,
        encoder=loaded.encoder,
        pairs=tmp_path / "pairs",
        pairs_per_row=0.5,
        pair_weight=1.0,
    )
    assert type(judge.objective(loaded.model, loaded.family)) is Preference
