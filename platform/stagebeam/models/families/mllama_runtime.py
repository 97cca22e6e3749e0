"""Mllama as an engine runs it: images are keys and values of the cross-attention layers.

They are made once for a set of images and shared by every row that looks at it. A question without
images passes those layers as training has it (families/mllama.py); where no row of a pass has an
image, transformers skips them.

Shapes: T tokens, S vision tokens of a question, L cross-attention layers, N key heads, D width of a
head; I images, K tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache

from stagebeam.models.encoder import Arrays
from stagebeam.models.families.mllama import encode_images
from stagebeam.models.family import on_device
from stagebeam.models.runtime import Pass, Runtime, Sight


class MllamaRuntime(Runtime):
    """Rows of Mllama."""

    shows_images = True

    def growing(self, text: Any) -> tuple[int, ...]:
        crossing = text.cross_attention_layers
        return tuple(layer for layer in range(text.num_hidden_layers) if layer not in crossing)

    @torch.inference_mode()
    def see(self, images: Sequence[Arrays]) -> Sight:
        batch = on_device(self.encoder.stack_images([images]), self.device)
        states = encode_images(self.model, batch, self.encoder.normalisation)  # [1, S, width]
        layers = self.model.model.language_model.layers
        crossing = self.model.config.text_config.cross_attention_layers
        kv = [self._keys_and_values(layers[layer].cross_attn, states) for layer in crossing]
        return Sight(len(images), kv=torch.stack(kv))

    def _keys_and_values(self, attention: Any, states: torch.Tensor) -> torch.Tensor:
        """Of one layer, [2, 1, N, S, D]."""
        heads = (self.kv.heads, self.kv.width)
        keys, values = (
            project(states).unflatten(-1, heads).transpose(1, 2)
            for project in (attention.k_proj, attention.v_proj)
        )
        return torch.stack((attention.k_norm(keys), values))

    def looks(
        self, ids: Sequence[int], images: Sequence[Arrays]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        encoder: Any = self.encoder
        tiles = torch.from_numpy(encoder.cross_mask([ids], [images], len(ids)))[0].flatten(1)
        touched = tiles.any(-1).bool()  # [T]
        # a token before its images looks at all of them, and its MLP is passed by
        tiles = tiles.bool() | ~touched[:, None]
        patches = self.model.model.vision_model.num_patches
        return tiles.repeat_interleave(patches, dim=-1), touched

    def hidden(self, step: Pass, cache: Cache) -> torch.Tensor:
        out: torch.Tensor = self.model.model.language_model(
            input_ids=step.ids,
            attention_mask=step.mask,
            position_ids=step.positions,
            cross_attention_mask=step.looks,
            full_text_row_masked_out_mask=step.touched,
            past_key_values=cache,
            use_cache=True,
            shared=step.shared,
            beside=step.beside,
            branches=step.branches,
        ).last_hidden_state
        return out
