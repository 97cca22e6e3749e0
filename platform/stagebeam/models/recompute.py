"""Activations that are computed again for the backward pass instead of being kept."""

from __future__ import annotations

from typing import Any

from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.mllama.modeling_mllama import MllamaVisionEncoderLayer


class _MllamaVisionLayer(GradientCheckpointingLayer, MllamaVisionEncoderLayer):
    pass


def make_recomputable(model: Any) -> None:
    """Make transformers treat every layer of the towers as it does the decoder's. In 5.19 Mllama's
    vision layers are left out, which on four tiles of 560 pixels keep ten gigabytes an image."""
    for module in model.modules():
        if type(module) is MllamaVisionEncoderLayer:
            module.__class__ = _MllamaVisionLayer


def recompute(model: Any) -> None:
    """Keep each layer's input alone; the same numbers, a forward pass more."""
    make_recomputable(model)
    model.gradient_checkpointing_enable()
