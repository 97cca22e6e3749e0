"""A rank of the barest DeepSpeed loop: `python -m jobs.benchmarks.bare_training SETTINGS.json`.

The launcher sets torch.distributed's variables. Rank 0 prints the seconds of every step as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from jobs.benchmarks.mid_size import plan_of
from stagebeam.data.layout import TRAIN_SPLIT
from stagebeam.data.shards import ShardReader
from stagebeam.models.encoder import IGNORE
from stagebeam.models.registry import family_of
from stagebeam.recipe import ModelConfig
from stagebeam.train_config import TrainConfig


def main(settings_file: Path) -> None:
    from stagebeam.training.loop import make_engine
    from stagebeam.training.objectives import Supervised
    from stagebeam.training.zero import deepspeed_settings, load_partitioned

    given = json.loads(settings_file.read_text())
    model_config = ModelConfig.model_validate(given["model"])
    train = TrainConfig.model_validate(given["train"])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    family = family_of(model_config.path)
    encoder = family.encoder(model_config.path)
    settings = deepspeed_settings(model_config, train)
    model = load_partitioned(model_config.path, model_config.dtype, settings)
    model.train()
    engine = make_engine(Supervised(model, family, encoder), train, settings)
    shards = Path(given["shards"])
    plan = plan_of(shards, train.num_workers, given["steps"])
    reader = ShardReader(shards, TRAIN_SPLIT)
    held = [
        {
            key: torch.from_numpy(value)
            for key, value in encoder(reader.rows(plan.rank_rows(step, rank, 0)))[0].items()
        }
        for step in range(plan.total_steps)
    ]
    dist.barrier()
    seconds = []
    for batch in held:
        began = time.perf_counter()
        loss = engine(**batch).sum() / (batch["labels"] != IGNORE).sum()
        engine.backward(loss)
        engine.step()
        seconds.append(time.perf_counter() - began)
    if rank == 0:
        print(json.dumps(seconds))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
