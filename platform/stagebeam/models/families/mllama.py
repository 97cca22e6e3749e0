"""Mllama (Llama-3.2-Vision): a decoder whose cross-attention layers look at the image.

`MllamaEncoder` is the CPU half and needs no weights; the functions below it are the device half.

Ranks stay in step and a row's loss does not depend on its neighbours: a text-only row carries a
blank image whose vision states are set to zero. The keys and values of zero are zero (the
projections have no bias) and the MLP of a fully masked row is masked by the model itself, so the
row passes every cross-attention layer unchanged, exactly as if the layer had been skipped, while
every rank gathers the same parameters (DeepSpeed issue 7170).

Shapes: B rows, T tokens, I images a row (at least 1), K tiles, C channels, H x W pixels of a tile,
P tiles that the images of a batch really have, S vision tokens of a row, D width of the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PilImage
from transformers import DynamicCache
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from stagebeam.models.encoder import Arrays, EncodedRow, RowEncoder
from stagebeam.models.family import Family, Normalisation, Tensors
from stagebeam.models.flops import Flops, decoder, linear, mlp, scores, self_attention


class MllamaEncoder(RowEncoder):
    """One image token stands for an image; a mask says which tokens look at which tiles."""

    def pixels(self, picture: PilImage.Image) -> Arrays:
        """`pixel_values` uint8 [tiles it has, C, H, W], `aspect_ratio_ids` [] and
        `aspect_ratio_mask` [K]."""
        out = self.image_processor(
            picture, do_rescale=False, do_normalize=False, return_tensors="np"
        )
        mask = np.asarray(out["aspect_ratio_mask"][0, 0], np.int64)
        return {
            "pixel_values": out["pixel_values"][0, 0][mask > 0].astype(np.uint8),
            "aspect_ratio_ids": np.asarray(out["aspect_ratio_ids"][0, 0], np.int64),
            "aspect_ratio_mask": mask,
        }

    def row_arrays(self, rows: Sequence[EncodedRow], input_ids: NDArray[Any]) -> Arrays:
        """`cross_attention_mask` [B, T, I, K]."""
        images, width = [row.images for row in rows], input_ids.shape[1]
        return {"cross_attention_mask": self.cross_mask(input_ids.tolist(), images, width)}

    def stack_images(self, rows: Sequence[Sequence[Arrays]]) -> Arrays:
        """`pixel_values` [P, C, H, W], and what says where its tiles belong: `aspect_ratio_ids`
        [B, I], `aspect_ratio_mask` [B, I, K] and `image_mask` [B, I], 0 for an absent image.

        Tiles that are not there are filled in on the device: they would be most of the traffic.
        """
        most = max(1, *(len(row) for row in rows))
        filled = [list(row) + [self._blank] * (most - len(row)) for row in rows]
        stacked = {
            key: np.stack([np.stack([image[key] for image in row]) for row in filled])
            for key in ("aspect_ratio_ids", "aspect_ratio_mask")
        }
        tiles = [image["pixel_values"] for row in rows for image in row]
        mask = [[i < len(row) for i in range(most)] for row in rows]
        return {
            "pixel_values": np.concatenate(tiles or [self._blank["pixel_values"][:0]]),
            **stacked,
            "image_mask": np.array(mask, np.int64),
        }

    def cross_mask(
        self, rows: Sequence[Sequence[int]], images: Sequence[Sequence[Arrays]], width: int
    ) -> NDArray[Any]:
        """Which tokens look at which image tiles, [B, T, I, K] uint8."""
        image_id = self.processor.image_token_id
        spans = [get_cross_attention_token_mask(list(ids), image_id) for ids in rows]
        most = max(1, *(len(row) for row in images))
        dense = convert_sparse_cross_attention_mask_to_dense(
            [row + [[0, 0]] * (most - len(row)) for row in spans],
            num_tiles=[
                [int(i["aspect_ratio_mask"].sum()) for i in row] + [0] * (most - len(row))
                for row in images
            ],
            max_num_tiles=self.image_processor.max_image_tiles,
            length=width,
        )
        return np.asarray(dense, np.uint8)

    @cached_property
    def _blank(self) -> Arrays:
        size = self.image_processor.size
        return self.pixels(PilImage.new("RGB", (int(size["width"]), int(size["height"]))))


def encode_images(model: Any, batch: Tensors, normalisation: Normalisation) -> torch.Tensor:
    """Vision states [B, S, D] of a batch's uint8 images; absent images give zeros."""
    tiles = batch["pixel_values"].float() / 255  # [P, C, H, W]
    mean, std = (tiles.new_tensor(v).view(-1, 1, 1) for v in normalisation)
    # The tower lets a tile look at absent ones, which must be the zeros that it was trained with.
    tiles = torch.cat([torch.zeros_like(mean).expand(1, *tiles.shape[1:]), (tiles - mean) / std])
    there = batch["aspect_ratio_mask"] * batch["image_mask"][..., None]  # [B, I, K]
    places = (there.flatten().cumsum(0) * there.flatten()).view_as(there)  # 0: not there
    encoded = model.model.vision_model(
        pixel_values=tiles[places],  # [B, I, K, C, H, W]
        aspect_ratio_ids=batch["aspect_ratio_ids"],
        aspect_ratio_mask=batch["aspect_ratio_mask"],
    ).last_hidden_state
    states = model.model.multi_modal_projector(encoded)  # [B, I, K, P, D] or flattened
    rows, images = batch["image_mask"].shape
    states = states.reshape(rows, images, -1, states.shape[-1])
    states = states * batch["image_mask"].to(states.dtype)[:, :, None, None]
    return states.flatten(1, 2)


def _masks(batch: Tensors, tile_tokens: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """What cross-attention adds to its scores, [B, 1, T, S], and which tokens its MLP works on,
    [B, 1, T, 1].

    As in transformers, a token that stands before its row's images looks at all of them, and the
    MLP passes it by. But only at those: transformers lets it look at every slot of the batch, so
    that its output would change with the image count of other rows.
    """
    looks = batch["cross_attention_mask"].bool()  # [B, T, I, K]
    any_tile = looks.flatten(2).any(-1)  # [B, T]
    # A row without images looks at slots that hold zeros, which leaves it as it is.
    own = batch["image_mask"].bool() | ~batch["image_mask"].bool().any(-1, keepdim=True)  # [B, I]
    looks = torch.where(any_tile[..., None, None], looks, own[:, None, :, None])
    hidden = (~looks.flatten(2)).repeat_interleave(tile_tokens, dim=-1)[:, None]
    added = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return added.masked_fill_(hidden, torch.finfo(dtype).min), any_tile[:, None, :, None].to(dtype)


def forward(model: Any, batch: Tensors, normalisation: Normalisation) -> torch.Tensor:
    """Logits [B, T, V] of a training batch."""
    tile_tokens = model.model.vision_model.num_patches
    mask, any_tile = _masks(batch, tile_tokens, model.dtype)
    hidden = model.model.language_model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        cross_attention_states=encode_images(model, batch, normalisation),
        cross_attention_mask=mask,
        full_text_row_masked_out_mask=any_tile,
        use_cache=False,
    ).last_hidden_state
    logits: torch.Tensor = model.lm_head(hidden)
    return logits


class _Seen(DynamicCache):
    """Keeps what the cross-attention layers wrote first: `generate` hands them the vision states
    with every token, and they would be added to those that are there."""

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self._crossing = frozenset(config.cross_attention_layers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        layer: Any = self.layers[layer_idx]
        if layer_idx in self._crossing and layer.get_seq_length():
            return layer.keys, layer.values
        return super().update(key_states, value_states, layer_idx, *args)


def generation(model: Any, batch: Tensors, normalisation: Normalisation) -> dict[str, Any]:
    """For `model.generate`, which makes its own masks; rows want equally many images."""
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "cross_attention_states": encode_images(model, batch, normalisation),
        "cross_attention_mask": batch["cross_attention_mask"].to(torch.int64),
        "past_key_values": _Seen(model.config.text_config),
    }


def flops(config: Any, batch: Arrays) -> Flops:
    """Forward FLOPs of a batch: all tiles that the tower runs, and the tokens that are there."""
    vision, text = config.vision_config, config.text_config
    images = batch["aspect_ratio_mask"].shape[0] * batch["aspect_ratio_mask"].shape[1]
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    padded = patches + -patches % 8  # the tower pads each tile so
    tiles = images * vision.max_num_tiles
    tower = 0.0
    for _ in range(vision.num_hidden_layers + vision.num_global_layers):
        size = vision.hidden_size // vision.attention_heads
        heads = (vision.attention_heads, vision.attention_heads, size)
        lengths = [padded * vision.max_num_tiles] * images
        tower += self_attention(lengths, vision.hidden_size, *heads, causal=False)
        tower += mlp(sum(lengths), vision.hidden_size, vision.intermediate_size, gated=False)
    pixels = vision.num_channels * vision.patch_size**2
    tower += linear(tiles * (patches - 1), pixels, vision.hidden_size)
    states = tiles * patches
    lengths = batch["attention_mask"].sum(1).tolist()
    tokens, crossing = sum(lengths), len(text.cross_attention_layers)
    head_dim = text.hidden_size // text.num_attention_heads
    width, kv_width = text.hidden_size, text.num_key_value_heads * head_dim
    seen = batch["aspect_ratio_mask"].shape[1] * vision.max_num_tiles * patches  # by each token
    cross = linear(tokens, width, 2 * width) + linear(states, width, 2 * kv_width)
    cross += scores(float(tokens) * seen, width)
    cross += mlp(tokens, width, text.intermediate_size, gated=True)
    return Flops(
        vision=tower,
        projector=linear(states, vision.vision_output_dim, width),
        cross_attention=crossing * cross,
        language=decoder(text, lengths, text.num_hidden_layers - crossing),
    )


def _groups(config: Any) -> dict[str, tuple[str, ...]]:
    layers = config.text_config.cross_attention_layers
    return {
        "vision": ("model.vision_model.",),
        "projector": ("model.multi_modal_projector.",),
        "cross_attention": tuple(f"model.language_model.layers.{layer}." for layer in layers),
        "language": ("model.language_model.", "lm_head."),
    }


FAMILY = Family("mllama", MllamaEncoder, forward, generation, _groups, flops)
