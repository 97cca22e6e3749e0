"""From a recipe's engine section to a generator or a judge."""

from __future__ import annotations

import torch

from stagebeam.inference.transformers_engine import TransformersEngine
from stagebeam.inference.verdict import TransformersJudge
from stagebeam.models.load import load
from stagebeam.recipe import EngineConfig, JudgeConfig


def load_generator(config: EngineConfig) -> TransformersEngine:
    """Raises ValueError where the model folder is absent or its weights do not fit."""
    torch.set_num_threads(config.threads)
    return TransformersEngine(
        load(config.model, config.device),
        max_rows=config.scaling.max_batch_rows,
        kv_bytes=config.kv_cache_mb << 20,
    )


def load_judge(config: JudgeConfig) -> TransformersJudge:
    """Raises ValueError where the model folder is absent or its weights do not fit."""
    torch.set_num_threads(config.threads)
    return TransformersJudge(
        load(config.model, config.device),
        kind=config.kind,
        max_rows=config.scaling.max_batch_rows,
    )
