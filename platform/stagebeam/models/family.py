"""What the platform has to know of a family of models; each is a file under `families/`.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from stagebeam.models.encoder import Arrays, RowEncoder
from stagebeam.models.flops import Flops

Tensors = dict[str, torch.Tensor]
Normalisation = tuple[list[float], list[float]]  # of RowEncoder.normalisation


def on_device(arrays: Mapping[str, Any], device: torch.device) -> Tensors:
    """Copies of a batch's arrays: what the stream hands over is mapped, and read-only."""
    return {key: torch.tensor(value).to(device) for key, value in arrays.items()}


@dataclass(frozen=True, slots=True)
class Family:
    """One family: how its rows are built, run and counted.

    `forward` gives logits [B, T, V] of a batch of the encoder's arrays as tensors on the device.
    It must run every trainable module whatever the batch holds, in the same order, so that ranks
    under ZeRO-3 gather the same parameters (DeepSpeed issue 7170), and a row's logits must not
    depend on the other rows of its batch.

    `generation` gives what `model.generate` takes for a batch that is padded on the left.
    """

    name: str  # in recipes, and `model_type` in the model's config.json
    encoder: type[RowEncoder]
    forward: Callable[[Any, Tensors, Normalisation], torch.Tensor]
    generation: Callable[[Any, Tensors, Normalisation], dict[str, Any]]
    # From the model's config, how parameter names of each group begin, from transformers' model
    # downwards; the first group that fits has it. Together they cover all parameters.
    groups: Callable[[Any], Mapping[str, tuple[str, ...]]]
    # Forward FLOPs of one batch, from the model's config and the encoder's arrays.
    flops: Callable[[Any, Arrays], Flops]
    packs: bool = False  # whether several conversations may share a row (RowEncoder.collate_packed)

    def group_of(self, config: Any, parameter: str) -> str:
        """The group of a parameter, by its name in the model."""
        for group, prefixes in self.groups(config).items():
            if parameter.startswith(prefixes):
                return group
        raise AssertionError(f"{parameter} belongs to no group of {self.name}")
