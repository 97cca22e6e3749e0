"""One rank that says how many bytes DeepSpeed's engine holds: `python memory_rank.py FOLDER`.

FOLDER/run.json has the model's folder and a list of cases (dtype and train settings); the rank
writes for each what it counted to `rank-N.json`, bytes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
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
from stagebeam.training.trainable import choose
from stagebeam.training.zero import deepspeed_settings, load_partitioned


def held(tensors: Iterable[Any]) -> int:
    """Bytes of the storages, each once."""
    storages = [t.untyped_storage() for t in tensors if torch.is_tensor(t)]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def flat(values: Iterable[Any]) -> list[Any]:
    return [t for value in values for t in (value if isinstance(value, list) else [value])]


def measure(model_config: ModelConfig, train: TrainConfig) -> dict[str, int]:
    family = family_of(model_config.path)
    encoder = family.encoder(model_config.path)
    settings = deepspeed_settings(model_config, train)
    model = load_partitioned(model_config.path, model_config.dtype, settings)
    choose(model, family, train, seed=0)
    engine = make_engine(Supervised(model.train(), family, encoder), train, settings)
    rank, world = dist.get_rank(), dist.get_world_size()
    arrays = zero_rank.micro_batches(encoder, 0, rank, world, 1)[0]
    batch = {key: torch.tensor(value) for key, value in arrays.items()}
    engine.backward(engine(**batch).sum().float())
    parameters, optimizer = list(engine.module.parameters()), engine.optimizer
    if train.zero_stage == 3:
        seen = {
            "weights": held(p.ds_tensor for p in parameters),
            "gradients": held([optimizer.grad_partitions_flat_buffer]),
            "fp32 master weights": held(optimizer.fp32_partitioned_groups_flat),
            "gradient bucket": held(b.buffer for b in optimizer.ipg_buckets.values()),
        }
    else:
        seen = {
            "weights": held(p.data for p in parameters),
            "gradients": held(flat(optimizer.averaged_gradients.values())),
            "fp32 master weights": held(optimizer.single_partition_of_fp32_groups),
        }
    engine.step()
    if train.zero_stage == 3:
        seen["small weights, whole"] = sum(
            p.data.numel() * p.data.element_size() for p in parameters if p.ds_persist
        )
    states = [v for state in optimizer.optimizer.state.values() for v in state.values()]
    seen["AdamW moments"] = held(v for v in states if torch.is_tensor(v) and v.numel() > 1)
    engine.destroy()
    return seen


def main(folder: Path) -> None:
    run = json.loads((folder / "run.json").read_text())
    dist.init_process_group("gloo")
    seen = [
        measure(
            ModelConfig(path=run["model"], dtype=case["dtype"]),
            TrainConfig.model_validate(case["train"]),
        )
        for case in run["cases"]
    ]
    (folder / f"rank-{dist.get_rank()}.json").write_text(json.dumps(seen))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
