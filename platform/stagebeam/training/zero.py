"""DeepSpeed's settings, derived from the recipe, and a model that is partitioned as it loads."""

from __future__ import annotations

from typing import Any

import torch
from transformers.integrations import HfDeepSpeedConfig

from stagebeam.models.family import Family
from stagebeam.models.load import open_weights
from stagebeam.models.recompute import recompute
from stagebeam.recipe import ModelConfig
from stagebeam.train_config import TrainConfig
from stagebeam.training.trainable import choose


def deepspeed_settings(model: ModelConfig, train: TrainConfig) -> dict[str, Any]:
    """What DeepSpeed reads instead of a JSON file beside the recipe."""
    micro_batches = train.num_workers * train.gradient_accumulation_steps
    micro = -(-train.global_batch_size // micro_batches)
    zero: dict[str, Any] = {"stage": train.zero_stage}
    if train.zero_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if train.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": train.use_gpu}
    if train.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": train.use_gpu}
    if train.use_gpu:
        zero["overlap_comm"] = True
    else:
        zero["memory_efficient_linear"] = False  # saves activations, costs time; host RAM is ample
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "gradient_clipping": train.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's AdamW: no second compiled extension
        "zero_force_ds_cpu_optimizer": False,  # nor where its state lies in host memory
        "bf16": {"enabled": model.dtype == "bfloat16"},
        "steps_per_print": 2**31,  # the loop reports; DeepSpeed's own lines are left out
    }


def open_for_training(
    model: ModelConfig, train: TrainConfig, family: Family, settings: dict[str, Any], seed: int
) -> Any:
    """The recipe's model with what it trains chosen, ready for DeepSpeed.

    Raises ValueError as `load_partitioned` and `choose` do.
    """
    opened = load_partitioned(model.path, model.dtype, settings)
    choose(opened, family, train, seed)
    if train.gradient_checkpointing:
        recompute(opened)
    return opened.train()


def load_partitioned(path: str, dtype: str, settings: dict[str, Any]) -> Any:
    """Open a model for training; under ZeRO-3 each rank keeps its share of every weight.

    Raises ValueError as `open_weights` does.
    """
    # Alive during from_pretrained, it makes transformers partition while loading.
    keep = HfDeepSpeedConfig(settings) if settings["zero_optimization"]["stage"] == 3 else None
    model = open_weights(path, getattr(torch, dtype))
    del keep
    return model
