"""Mllama (Llama-3.2-Vision): a decoder whose cross-attention layers look at the image.

`MllamaEncoder` is the CPU half (text to ids, bytes to uint8 pixels, rows to padded arrays) and
needs no weights. The functions below it are the device half.

Ranks stay in step and a row's loss does not depend on its neighbours: a text-only row carries a
blank image whose vision states are set to zero. The keys and values of zero are zero (the
projections have no bias) and the MLP of a fully masked row is masked by the model itself, so the
row passes every cross-attention layer unchanged, exactly as if the layer had been skipped, while
every rank gathers the same parameters (DeepSpeed issue 7170). Rows that do have images must have
equally many for that: transformers lets the tokens before a row's first image attend evenly to
all image slots of the batch, empty ones too.

Shapes: B rows, T tokens, I images a row (at least 1), K tiles, C channels, H x W pixels of a tile,
P tiles that the images of a batch really have, S vision tokens of a row, D width of the decoder.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PilImage
from transformers import AutoProcessor, MllamaForConditionalGeneration
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from stagebeam.records import Example, Message

IGNORE = -100  # label of a token without loss

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One conversation as ids and pixels, not yet padded."""

    input_ids: list[int]  # [T]
    labels: list[int]  # [T]
    images: tuple[Arrays, ...]  # one entry an image, see MllamaEncoder.image


class MllamaEncoder:
    """Text and images to arrays. Pickles as a path; the processor is loaded where it is used."""

    def __init__(self, path: str, max_length: int | None = None) -> None:
        self.path = path
        self.max_length = max_length  # tokens

    def __reduce__(self) -> tuple[type[MllamaEncoder], tuple[str, int | None]]:
        return MllamaEncoder, (self.path, self.max_length)

    @cached_property
    def processor(self) -> Any:
        return AutoProcessor.from_pretrained(self.path)

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @cached_property
    def _markers(self) -> tuple[str, ...]:
        # `all_special_tokens` has only those with a role of their own, without the headers
        special = [t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special]
        return tuple({*special, self.processor.image_token})

    def render(self, messages: Sequence[Message], images: int, *, answer_next: bool) -> str:
        """The conversation through the model's own chat template.

        Raises ValueError where a message carries one of the template's own markers.
        """
        chat = []
        for message in messages:
            for marker in self._markers:
                if marker in message.text:
                    raise ValueError(f"A message contains {marker}, a marker of the chat template.")
            parts: list[dict[str, str]] = [{"type": "text", "text": message.text}]
            if message.role == "user":
                parts = [{"type": "image"}] * images + parts
                images = 0
            chat.append({"role": message.role, "content": parts})
        assert images == 0, "images need a user turn to stand in"
        return str(
            self.processor.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=answer_next
            )
        )

    def ids(self, text: str) -> list[int]:
        """Token ids of rendered text; the template has written the special tokens already."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt_ids(self, messages: Sequence[Message], images: int) -> list[int]:
        """Ids up to where the assistant's answer begins."""
        return self.ids(self.render(messages, images, answer_next=True))

    def encode(self, example: Example) -> EncodedRow:
        """A training row: loss on every assistant turn, its end token included, nowhere else.

        Raises ValueError for a row that is too long, has chat markers in its text or a broken
        image.
        """
        input_ids: list[int] = []
        labels: list[int] = []
        done = ""
        count = len(example.images)
        for turn, message in enumerate(example.messages):
            if message.role != "assistant":
                continue
            asked = self.render(example.messages[:turn], count, answer_next=True)
            answered = self.render(example.messages[: turn + 1], count, answer_next=False)
            assert asked.startswith(done) and answered.startswith(asked), "template is not causal"
            prompt, answer = self.ids(asked[len(done) :]), self.ids(answered[len(asked) :])
            input_ids += prompt + answer
            labels += [IGNORE] * len(prompt) + answer
            done = answered
        if self.max_length and len(input_ids) > self.max_length:
            raise ValueError(
                f"Row {example.id} has {len(input_ids)} tokens, more than {self.max_length}."
            )
        return EncodedRow(input_ids, labels, tuple(self.image(i.bytes) for i in example.images))

    def image(self, data: bytes) -> Arrays:
        """`pixel_values` uint8 [tiles it has, C, H, W], `aspect_ratio_ids` [] and
        `aspect_ratio_mask` [K].

        Raises ValueError where the bytes are no image that can be decoded.
        """
        try:
            picture = PilImage.open(io.BytesIO(data)).convert("RGB")
        except Exception as error:  # a damaged file makes Pillow raise errors of many kinds
            raise ValueError("An image cannot be decoded.") from error
        # Scaling and normalising are left to the device: uint8 is a quarter of the traffic.
        out = self.processor.image_processor(
            picture, do_rescale=False, do_normalize=False, return_tensors="np"
        )
        mask = np.asarray(out["aspect_ratio_mask"][0, 0], np.int64)
        return {
            "pixel_values": out["pixel_values"][0, 0][mask > 0].astype(np.uint8),
            "aspect_ratio_ids": np.asarray(out["aspect_ratio_ids"][0, 0], np.int64),
            "aspect_ratio_mask": mask,
        }

    def collate(self, rows: Sequence[EncodedRow]) -> Arrays:
        """Pad rows on the right into one batch of arrays, images included."""
        width = max(len(row.input_ids) for row in rows)

        def padded(values: list[int], fill: int) -> list[int]:
            return values + [fill] * (width - len(values))

        pad = self.tokenizer.pad_token_id
        return {
            "input_ids": np.array([padded(r.input_ids, pad) for r in rows], np.int64),
            "labels": np.array([padded(r.labels, IGNORE) for r in rows], np.int64),
            "attention_mask": np.array([padded([1] * len(r.input_ids), 0) for r in rows], np.int64),
            "cross_attention_mask": self.cross_mask(
                [r.input_ids for r in rows], [r.images for r in rows], width
            ),
            **self.stack_images([r.images for r in rows]),
        }

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
            max_num_tiles=self.processor.image_processor.max_image_tiles,
            length=width,
        )
        return np.asarray(dense, np.uint8)

    @cached_property
    def _blank(self) -> Arrays:
        size = self.processor.image_processor.size
        side = (int(size["height"]), int(size["width"]))
        buffer = io.BytesIO()
        PilImage.new("RGB", side[::-1]).save(buffer, "PNG")
        return self.image(buffer.getvalue())

    def training_rows(self, examples: Sequence[Example]) -> tuple[list[EncodedRow], dict[str, str]]:
        """A row for each example, and why those ids were refused that cannot be trained on.

        A refused example leaves a row without loss in its place, so that every batch has its
        rows and one bad example does not end a run.
        """
        rows, refused = [], {}
        for example in examples:
            try:
                rows.append(self.encode(example))
            except ValueError as error:
                rows.append(EncodedRow([self.tokenizer.pad_token_id], [IGNORE], ()))
                refused[example.id] = str(error)
        return rows, refused

    def __call__(self, examples: Sequence[Example]) -> tuple[Arrays, dict[str, str]]:
        """A training batch straight from examples (what the stream is handed), and what was
        refused."""
        rows, refused = self.training_rows(examples)
        return self.collate(rows), refused

    @cached_property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, of pixels scaled to 0..1."""
        images = self.processor.image_processor
        return list(images.image_mean), list(images.image_std)


def encode_images(
    model: MllamaForConditionalGeneration,
    batch: dict[str, torch.Tensor],
    normalisation: tuple[list[float], list[float]],
) -> torch.Tensor:
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


def forward(
    model: MllamaForConditionalGeneration,
    batch: dict[str, torch.Tensor],
    normalisation: tuple[list[float], list[float]],
) -> torch.Tensor:
    """Logits [B, T, V] of a training batch."""
    return model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        cross_attention_states=encode_images(model, batch, normalisation),
        cross_attention_mask=batch["cross_attention_mask"].to(torch.int64),
        use_cache=False,
    ).logits
