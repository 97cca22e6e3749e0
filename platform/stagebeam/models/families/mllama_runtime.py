"""Mllama step by step, as an engine needs it: encode an image, prefill a row, decode a batch.

Shapes: R rows, T tokens, I images a row, K tiles, S vision tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from stagebeam.models.encoder import Arrays
from stagebeam.models.families.mllama import MllamaEncoder, encode_images
from stagebeam.models.load import Loaded


class MllamaRuntime:
    """Forward passes over rows of different lengths, padded on the left."""

    def __init__(self, loaded: Loaded) -> None:
        if not isinstance(loaded.encoder, MllamaEncoder):
            raise ValueError(
                f"The engine `transformers` runs mllama models, not {loaded.family.name}."
            )
        self.model, self.encoder = loaded.model, loaded.encoder
        self._config: Any = loaded.model.config
        text: Any = self._config.text_config
        # Cross-attention layers hold the image and never grow with the text.
        self.grows = tuple(
            layer not in text.cross_attention_layers for layer in range(text.num_hidden_layers)
        )

    @property
    def device(self) -> torch.device:
        return self.model.device

    @torch.inference_mode()
    def vision(self, images: Sequence[Sequence[Arrays]]) -> torch.Tensor:
        """Vision states [R, S, D]; zeros for a row without images, which then costs no pass."""
        arrays = self.encoder.stack_images(images)
        batch = {key: torch.from_numpy(value).to(self.device) for key, value in arrays.items()}
        if any(images):
            return encode_images(self.model, batch, self.encoder.normalisation)
        vision = self._config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2 + 1
        width = self._config.text_config.hidden_size
        shape = (len(images), batch["aspect_ratio_mask"].shape[2] * patches, width)
        return torch.zeros(shape, dtype=self.model.dtype, device=self.device)

    @torch.inference_mode()
    def prefill(
        self,
        ids: Sequence[int],
        images: Sequence[Arrays],
        start: int,
        cache: DynamicCache,
        states: torch.Tensor | None,
    ) -> torch.Tensor:
        """Extend one row's `cache` by ids[start:]; logits [V] after the last.

        `states` [1, S, D] fills the cross-attention layers and is None where the cache has them.
        """
        logits: torch.Tensor = self.model(
            input_ids=torch.tensor([list(ids[start:])], device=self.device),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64, device=self.device),
            position_ids=torch.arange(start, len(ids), device=self.device)[None],
            cross_attention_states=states,
            cross_attention_mask=self.cross_rows(ids, images)[:, start:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[0, -1]

    def cross_rows(self, ids: Sequence[int], images: Sequence[Arrays]) -> torch.Tensor:
        """The row's cross-attention mask, [1, T, I, K]; a new token sees what the last one saw."""
        mask = self.encoder.cross_mask([ids], [images], len(ids))
        return torch.from_numpy(mask).to(self.device, torch.int64)

    @torch.inference_mode()
    def decode(
        self,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        cross: torch.Tensor,
        cache: DynamicCache,
    ) -> torch.Tensor:
        """One token for each row; logits [R, V].

        `tokens` [R], `lengths` [R] tokens already in the cache without its left padding, `cross`
        [R, 1, I, K]. The cache is T long in its growing layers and T + 1 afterwards.
        """
        total = cache.get_seq_length() + 1
        columns = torch.arange(total, device=self.device)
        logits: torch.Tensor = self.model(
            input_ids=tokens[:, None],
            attention_mask=(columns >= total - 1 - lengths[:, None]).to(torch.int64),
            position_ids=lengths[:, None],
            cross_attention_mask=cross,
            past_key_values=cache,
            use_cache=True,
        ).logits
        return logits[:, -1]

    @torch.inference_mode()
    def score(
        self,
        rows: Sequence[Sequence[int]],
        images: Sequence[Sequence[Arrays]],
        states: torch.Tensor,
    ) -> torch.Tensor:
        """Logits [R, T, V] of whole rows, padded on the right; `states` [R, S, D]."""
        width = max(map(len, rows))
        pad = self.encoder.tokenizer.pad_token_id
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        cross = torch.from_numpy(self.encoder.cross_mask(rows, images, width))
        logits: torch.Tensor = self.model(
            input_ids=ids.to(self.device),
            attention_mask=(torch.arange(width) < lengths[:, None]).long().to(self.device),
            cross_attention_states=states,
            cross_attention_mask=cross.to(self.device, torch.int64),
            use_cache=False,
        ).logits
        return logits
