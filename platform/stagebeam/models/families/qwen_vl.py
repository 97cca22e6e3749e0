"""Qwen2.5-VL: images of any size, whose merged patches stand in the text as tokens.

The tower looks at windows of an image in most blocks and at the whole image in a few; a merger
makes one token of 2 x 2 patches; the decoder's positions have three axes, so that an image's
tokens lie in a plane (arXiv 2502.13923, section 2.1).

`QwenEncoder` is the CPU half and needs no weights; the functions below it are the device half.
Images of a batch travel as one long list of patches: every one of them stands for itself, since
the tower keeps each image's attention to itself.

Ranks stay in step because the tower and the merger run for every batch, over a few blank patches
where it has no image (DeepSpeed issue 7170). No token asks for the blank's features, so logits
are those of text alone, and gradients through them are zero but there.

Shapes: B rows, T tokens, N images of a batch, P patches of all of them, C channels, F merged
patches, D width of the decoder, V vocabulary. A patch is `patch_size` pixels each way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PilImage
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from stagebeam.local_copy import fetched
from stagebeam.models.encoder import Arrays, EncodedRow, RowEncoder
from stagebeam.models.family import Family, Normalisation, Tensors
from stagebeam.models.flops import Flops, decoder, linear, mlp, self_attention
from stagebeam.models.placed import embed


class StillProcessor:
    """Qwen2.5-VL's processor without its video half, which cannot be had without torchvision.

    What it saves is a folder like Qwen's own, which opens as the whole processor where torchvision
    is installed.
    """

    image_token = "<|image_pad|>"

    def __init__(self, tokenizer: Any, image_processor: Any) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor  # of Qwen2-VL, in pillow

    @classmethod
    def from_pretrained(cls, path: str) -> Self:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        return cls(tokenizer, Qwen2VLImageProcessorPil.from_pretrained(path))

    @property
    def image_token_id(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(self.image_token))

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        return self.tokenizer.apply_chat_template(conversation, **options)

    def save_pretrained(self, folder: str) -> None:
        self.tokenizer.save_pretrained(folder)
        # The video half is read from this file too, so it must not be nested in another.
        self.image_processor.processor_class = "Qwen2_5_VLProcessor"
        self.image_processor.save_pretrained(folder)


class QwenEncoder(RowEncoder):
    """As many image tokens stand for an image as it has merged patches."""

    @cached_property
    def processor(self) -> StillProcessor:
        return StillProcessor.from_pretrained(fetched(self.path))

    def pixels(self, picture: PilImage.Image) -> Arrays:
        """`pixel_values` uint8 [patches, C * pixels of a patch] and `image_grid_thw` [3], patches
        in time (always 1), height and width.

        The model wants each frame of a still image twice: that is left to the device.
        """
        processor = self.image_processor
        out = processor(picture, do_rescale=False, do_normalize=False, return_tensors="np")
        patches = out["pixel_values"].astype(np.uint8)
        frames = patches.reshape(len(patches), -1, processor.temporal_patch_size, self._patch_area)
        return {
            "pixel_values": frames[:, :, 0].reshape(len(patches), -1),
            "image_grid_thw": out["image_grid_thw"][0],
        }

    def stack_images(self, rows: Sequence[Sequence[Arrays]]) -> Arrays:
        """`pixel_values` [P, ...] and `image_grid_thw` [N, 3] of all rows, one after another; a
        blank of one merged patch if N were 0."""
        images = [image for row in rows for image in row] or [self.blank]
        return {
            "pixel_values": np.concatenate([image["pixel_values"] for image in images]),
            "image_grid_thw": np.stack([image["image_grid_thw"] for image in images]),
        }

    def expand(self, text: str, images: Iterator[Arrays]) -> str:
        head, *rest = text.split(self.image_token)
        tokens = (math.prod(self._merged(next(images))) for _ in rest)
        return head + "".join(
            self.image_token * count + part for count, part in zip(tokens, rest, strict=True)
        )

    def collate(self, rows: Sequence[EncodedRow], *, left: bool = False) -> Arrays:
        """As the base has it, and `position_ids` [B, T, 3], 0 in the padding.

        Raises ValueError where a row's image tokens are not those of its images.
        """
        batch = super().collate(rows, left=left)
        positions = np.zeros((*batch["input_ids"].shape, 3), np.int64)
        for row, mask, place in zip(rows, batch["attention_mask"], positions, strict=True):
            place[mask == 1] = self.positions(row)
        return {**batch, "position_ids": positions}

    def positions(self, row: EncodedRow) -> NDArray[np.int64]:
        """Where each token stands in time, height and width, [T, 3].

        Text counts on along all three axes, from one past the furthest that an image has reached:
        transformers' `get_rope_index`, which wants the model. Raises ValueError where image
        tokens are not those of the row's images.
        """
        ids = np.array(row.input_ids)
        places = np.flatnonzero(ids == self.processor.image_token_id)
        grids = [self._merged(image) for image in row.images]
        wanted = sum(math.prod(grid) for grid in grids)
        if wanted != len(places):
            raise ValueError(f"A row has {len(places)} image tokens, and its images take {wanted}.")
        positions = np.empty((len(ids), 3), np.int64)
        token = position = 0  # that come next
        for grid in grids:
            start, count = places[0], math.prod(grid)
            places = places[count:]
            positions[token:start] = np.arange(position, position + start - token)[:, None]
            position += start - token
            positions[start : start + count] = position + np.indices(grid).reshape(3, -1).T
            position += max(grid)
            token = start + count
        positions[token:] = np.arange(position, position + len(ids) - token)[:, None]
        return positions

    @cached_property
    def blank(self) -> Arrays:
        """One merged patch of black."""
        side, channels = self.image_processor.merge_size, len(self.normalisation[0])
        return {
            "pixel_values": np.zeros((side * side, channels * self._patch_area), np.uint8),
            "image_grid_thw": np.array([1, side, side], np.int64),
        }

    def _merged(self, image: Arrays) -> tuple[int, int, int]:
        """An image's tokens in time, height and width."""
        side = self.image_processor.merge_size
        time, height, width = image["image_grid_thw"].tolist()
        return time, height // side, width // side

    @property
    def _patch_area(self) -> int:
        return int(self.image_processor.patch_size) ** 2


def image_features(model: Any, batch: Tensors, normalisation: Normalisation) -> torch.Tensor:
    """What the batch's images become in the decoder's input, [F, D]."""
    channels = len(normalisation[0])
    pixels = batch["pixel_values"].unflatten(1, (channels, -1)).float() / 255  # [P, C, area]
    mean, std = (pixels.new_tensor(v).view(-1, 1) for v in normalisation)
    frame = ((pixels - mean) / std).to(model.dtype)[:, :, None]
    frames = frame.expand(-1, -1, model.config.vision_config.temporal_patch_size, -1)
    features: torch.Tensor = model.model.visual(
        frames.flatten(1), grid_thw=batch["image_grid_thw"]
    ).pooler_output
    return features


def forward(model: Any, batch: Tensors, normalisation: Normalisation) -> torch.Tensor:
    """Logits [B, T, V] of a training batch."""
    hidden = model.model.language_model(
        inputs_embeds=embed(model, batch, image_features(model, batch, normalisation)),
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"].permute(2, 0, 1),
        use_cache=False,
    ).last_hidden_state
    logits: torch.Tensor = model.lm_head(hidden)
    return logits


def generation(model: Any, batch: Tensors, normalisation: Normalisation) -> dict[str, Any]:
    """For `model.generate`, which then answers with new tokens alone; rows may have any number of
    images.

    A new token's position is one more than the last one's along each axis, as it must be after
    text, which every prompt ends in; the model's own `rope_deltas` are not needed.
    """
    return {
        "attention_mask": batch["attention_mask"],
        "inputs_embeds": embed(model, batch, image_features(model, batch, normalisation)),
        "position_ids": batch["position_ids"].permute(2, 0, 1),
    }


def flops(config: Any, batch: Arrays) -> Flops:
    """Forward FLOPs of a batch: every patch that the tower runs, a blank's included, and the
    tokens that are there."""
    vision, text = config.vision_config, config.text_config
    grids = [[int(n) for n in grid] for grid in batch["image_grid_thw"]]
    patches = len(batch["pixel_values"])
    whole = [height * width for time, height, width in grids for _ in range(time)]
    windows = [length for grid in grids for length in _windows(vision, *grid)]
    width, heads = vision.hidden_size, vision.num_heads
    volume = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    tower = linear(patches, volume, width)
    for block in range(vision.depth):
        lengths = whole if block in vision.fullatt_block_indexes else windows
        tower += self_attention(lengths, width, heads, heads, width // heads, causal=False)
        tower += mlp(patches, width, vision.intermediate_size, gated=True)
    merged = vision.spatial_merge_size**2
    wide, tokens = width * merged, patches / merged
    return Flops(
        vision=tower,
        projector=linear(tokens, wide, wide) + linear(tokens, wide, vision.out_hidden_size),
        language=decoder(
            text, [int(n) for n in batch["attention_mask"].sum(1)], text.num_hidden_layers
        ),
    )


def _windows(vision: Any, time: int, height: int, width: int) -> list[int]:
    """Patches in each window of an image."""
    side = vision.window_size // vision.patch_size // vision.spatial_merge_size  # merged patches

    def cut(patches: int) -> list[int]:
        merged = patches // vision.spatial_merge_size
        return [min(side, merged - start) for start in range(0, merged, side)]

    unit = vision.spatial_merge_size**2
    return [unit * h * w for _ in range(time) for h in cut(height) for w in cut(width)]


def _groups(config: Any) -> Mapping[str, tuple[str, ...]]:
    return {
        "projector": ("model.visual.merger.",),
        "vision": ("model.visual.",),
        # without `lm_head` where it is tied to the embeddings, as in the 3B model
        "language": ("model.language_model.", "lm_head."),
    }


FAMILY = Family("qwen2_5_vl", QwenEncoder, forward, generation, _groups, flops)
