"""A model without its weights: built on torch's meta device from its config, and what of it is
trained. Takes no memory and no GPU, and opens no weight file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import cached_file

from stagebeam.local_copy import fetched
from stagebeam.models.family import Family
from stagebeam.models.recompute import make_recomputable
from stagebeam.models.registry import family_of
from stagebeam.recipe import ModelConfig
from stagebeam.train_config import TrainConfig
from stagebeam.training.trainable import choose


@dataclass(frozen=True, slots=True)
class Weight:
    """One parameter, adapters included."""

    name: str
    numel: int
    group: str
    trained: bool


@dataclass(frozen=True, slots=True)
class Outline:
    """A model's structure. `model` lies on the meta device: shapes without values."""

    family: Family
    config: Any
    model: Any
    weights: tuple[Weight, ...]

    def count(self, *, trained: bool | None = None) -> dict[str, int]:
        """Parameters by group; all of them, or only those that are trained or are not."""
        counts: Counter[str] = Counter()
        for weight in self.weights:
            counts[weight.group] += weight.numel if trained in (None, weight.trained) else 0
        return dict(counts)

    def recomputes(self, group: str) -> bool:
        """Whether the layers of a group can be computed again for the backward pass: transformers
        does so for layers of one class only."""
        return any(
            isinstance(module, GradientCheckpointingLayer)
            and self.family.group_of(self.config, f"{name}.") == group
            for name, module in self.model.named_modules()
        )


def local_folder(path: str) -> str:
    """The model folder at `path`, the copy of one at a URL, or the downloaded one of that hub name.

    Raises ValueError where there is none; of a hub name nothing is downloaded.
    """
    path = fetched(path)
    if Path(path).is_dir():
        return path
    if path.startswith(("/", ".", "runs/")):
        raise ValueError(f"There is no model folder at {path}.")
    try:
        found = cached_file(path, "config.json", local_files_only=True)
    except (OSError, ValueError):
        raise ValueError(f"There is no model folder {path}, and no download of it.") from None
    return str(Path(str(found)).parent)


def outline(folder: str, model: ModelConfig, train: TrainConfig) -> Outline:
    """The model of a local folder as the recipe trains it.

    Raises ValueError where the folder's config cannot be read or is of another family, or where
    the recipe trains a group that the model does not have.
    """
    family = family_of(folder, model.family)
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        built = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, model.dtype))
        choose(built, family, train, seed=0)
    make_recomputable(built)
    weights = tuple(
        Weight(name, parameter.numel(), family.group_of(config, name), parameter.requires_grad)
        for name, parameter in built.named_parameters()
    )
    return Outline(family, config, built, weights)
