"""Which weights are trained: all, some groups, or low-rank adapters of some groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import save_file

from stagebeam.models.family import Family
from stagebeam.train_config import LoraConfig, TrainConfig

_BASE, _A, _B = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


def check_groups(family: Family, config: Any, wanted: Iterable[str]) -> None:
    """Raises ValueError for a group that the model, of this config, does not have."""
    there = family.groups(config)
    for group in wanted:
        if group not in there:
            raise ValueError(
                f"A {family.name} model has no group {group}; it has {', '.join(there)}."
            )


def check_packing(family: Family, train: TrainConfig) -> None:
    """Raises ValueError where rows are to be packed of a family that cannot."""
    if train.packing and not family.packs:
        raise ValueError(f"A {family.name} model cannot have rows packed; leave out train.packing.")


def choose(model: Any, family: Family, train: TrainConfig, seed: int) -> None:
    """Freeze what the recipe does not train, and put its adapters in; before DeepSpeed sees it.

    Raises ValueError for a group that the model does not have.
    """
    if train.lora is not None:
        check_groups(family, model.config, train.lora.groups)
        torch.manual_seed(seed)  # all ranks draw the same adapters
        peft.inject_adapter_in_model(adapter_config(model, family, train.lora), model)
    elif train.trainable is not None:
        check_groups(family, model.config, train.trainable)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(family.group_of(model.config, name) in train.trainable)


def adapter_config(model: Any, family: Family, lora: LoraConfig) -> peft.LoraConfig:
    """Adapters on every linear layer of the groups but the head."""
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and not name.startswith("lm_head")
        and family.group_of(model.config, f"{name}.weight") in lora.groups
    ]
    return peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=layers
    )


def merged(weights: Mapping[str, torch.Tensor], lora: LoraConfig) -> dict[str, torch.Tensor]:
    """The weights of the model without adapters that computes what the one with them does."""
    whole = {}
    for name, weight in weights.items():
        if name.endswith((_A, _B)):
            continue
        if name.endswith(f"{_BASE}weight"):
            layer = name.removesuffix(f"{_BASE}weight")
            change = weights[layer + _B].float() @ weights[layer + _A].float()
            weight = (weight.float() + lora.alpha / lora.rank * change).to(weight.dtype)
        whole[name.replace(_BASE, ".")] = weight
    return whole


def save_adapter(
    weights: Mapping[str, torch.Tensor], config: peft.LoraConfig, folder: Path
) -> None:
    """The adapters alone, as `peft.PeftModel.from_pretrained` opens them."""
    config.save_pretrained(str(folder))
    alone = {
        f"base_model.model.{name.replace('.default.', '.')}": weight.contiguous()
        for name, weight in weights.items()
        if name.endswith((_A, _B))
    }
    save_file(alone, folder / "adapter_model.safetensors")
