"""Families whose images stand in the text as tokens, as an engine runs them.

Shapes: R rows, T tokens, F image features, D width of the decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from transformers import Cache

from stagebeam.models.encoder import Arrays, EncodedRow
from stagebeam.models.families import llava, llava_next, qwen_vl
from stagebeam.models.family import Normalisation, Tensors, on_device
from stagebeam.models.load import Loaded
from stagebeam.models.placed import embed
from stagebeam.models.runtime import Pass, Runtime, Sight

Features = Callable[[Any, Tensors, Normalisation], torch.Tensor]


class PlacedRuntime(Runtime):
    """Rows of a decoder that takes an image's features in place of embeddings."""

    def __init__(self, loaded: Loaded, *, features: Features) -> None:
        super().__init__(loaded)
        self._features = features  # [F, D] of a batch's images

    @torch.inference_mode()
    def see(self, images: Sequence[Arrays]) -> Sight:
        batch = on_device(self.encoder.stack_images([images]), self.device)
        return Sight(
            len(images), features=self._features(self.model, batch, self.encoder.normalisation)
        )

    def hidden(self, step: Pass, cache: Cache) -> torch.Tensor:
        if step.features is None:
            inputs = self.model.get_input_embeddings()(step.ids)
        else:
            inputs = embed(self.model, {"input_ids": step.ids}, step.features)
        positions = step.positions
        out: torch.Tensor = self.model.model.language_model(
            inputs_embeds=inputs,
            attention_mask=step.mask,
            position_ids=positions.permute(2, 0, 1) if positions.ndim == 3 else positions,
            past_key_values=cache,
            use_cache=True,
            beside=step.beside,
            branches=step.branches,
        ).last_hidden_state
        return out


class QwenRuntime(PlacedRuntime):
    """Positions have three axes, and those of an image's tokens lie in a plane."""

    def positions(self, ids: Sequence[int], images: Sequence[Arrays]) -> torch.Tensor:
        encoder: Any = self.encoder
        return torch.from_numpy(encoder.positions(EncodedRow(list(ids), [], tuple(images))))

    def spread(self, places: torch.Tensor) -> torch.Tensor:
        return places[..., None].expand(*places.shape, 3)


llava_runtime = partial(PlacedRuntime, features=llava.image_features)
llava_next_runtime = partial(PlacedRuntime, features=llava_next.image_features)
qwen_runtime = partial(QwenRuntime, features=qwen_vl.image_features)
