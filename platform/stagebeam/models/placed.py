"""Families whose images stand in the text as tokens: features in place of embeddings."""

from __future__ import annotations

from typing import Any

import torch

from stagebeam.models.family import Tensors


def embed(model: Any, batch: Tensors, features: torch.Tensor) -> torch.Tensor:
    """The decoder's inputs [B, T, D]: of the features [F, D] one at each image token, embeddings
    elsewhere.

    Features that no token asks for are left over, with a gradient of zero.
    """
    embedded = model.get_input_embeddings()(batch["input_ids"])
    places = (batch["input_ids"] == model.config.image_token_id)[..., None]
    inputs: torch.Tensor = embedded.masked_scatter(places, features.to(embedded.dtype))
    return inputs
