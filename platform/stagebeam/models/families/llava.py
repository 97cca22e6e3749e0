"""LLaVA: a CLIP tower whose projected patches stand in the text as if they were tokens.

The tower's features come from the layer that the model's config names (the second-to-last by
default), and a projector maps them to the decoder's width. transformers builds the projector of
LLaVA-1.5, two linear layers with an activation between them. The first LLaVA's single matrix
(H = W * g(X), arXiv 2304.08485 section 4.1) is `projector_hidden_act: "linear"`: two linear layers
with nothing between them are one linear map.

`LlavaEncoder` is the CPU half and needs no weights; the functions below it are the device half,
which LLaVA-NeXT shares (families/llava_next.py).

Ranks stay in step because the tower and the projector run for every batch, over a blank image
where it has none (DeepSpeed issue 7170). No token asks for the blank's features, so logits are
those of text alone, and gradients through them are zero but there.

Shapes: B rows, T tokens, N images of a batch, C channels, H x W pixels, F vision tokens of a
batch, D width of the decoder, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PilImage

from stagebeam.models.encoder import IGNORE, Arrays, Chat, EncodedRow, RowEncoder
from stagebeam.models.family import Family, Normalisation, Tensors
from stagebeam.models.flops import Flops, decoder, linear, mlp, self_attention
from stagebeam.models.placed import embed


class LlavaEncoder(RowEncoder):
    """As many image tokens stand for an image as it has features; the decoder's inputs at those
    places are the features, in the order of the images."""

    def pixels(self, picture: PilImage.Image) -> Arrays:
        """`pixel_values` uint8 [C, H, W]."""
        out = self.image_processor(
            picture, do_rescale=False, do_normalize=False, return_tensors="np"
        )
        return {"pixel_values": out["pixel_values"][0].astype(np.uint8)}

    def stack_images(self, rows: Sequence[Sequence[Arrays]]) -> Arrays:
        """`pixel_values` [N, C, H, W] of all rows, one after another; a blank one if N were 0."""
        images = [image for row in rows for image in row] or [self.blank]
        return {"pixel_values": np.stack([image["pixel_values"] for image in images])}

    def template(self, chat: Chat, *, answer_next: bool) -> str:
        """As the base has it, with the begin token where the tokenizer adds it and the template
        leaves that to it, as the template of llava-1.5-7b-hf does."""
        text = super().template(chat, answer_next=answer_next)
        return text if text.startswith(self._begin) else self._begin + text

    def expand(self, text: str, images: Iterator[Arrays]) -> str:
        return re.sub(re.escape(self.image_token), lambda _: self._tokens_of(next(images)), text)

    def row_arrays(self, rows: Sequence[EncodedRow], input_ids: NDArray[Any]) -> Arrays:
        """None.

        Raises ValueError where a row's image tokens are not those of its images: features would
        go to the wrong places, and to other rows.
        """
        for row in rows:
            wanted = sum(self._tokens_of(i).count(self.image_token) for i in row.images)
            found = row.input_ids.count(self.processor.image_token_id)
            if wanted != found:
                raise ValueError(f"A row has {found} image tokens, and its images take {wanted}.")
        return {}

    def collate_packed(self, rows: Sequence[EncodedRow], width: int) -> Arrays:
        """Several conversations a row, by first fit: `input_ids`, `labels` and `position_ids`
        [B, T] with T at most `width`, and the images.

        Positions begin at 0 with each conversation, and are 0 in the padding. There is no
        `attention_mask`: without one, transformers tells conversations apart by their positions.
        A conversation's first token carries no loss, so none is predicted from its neighbour.
        Raises ValueError where a row is longer than `width`.
        """
        self.row_arrays(rows, np.empty(0))
        packs = _first_fit(rows, width)
        longest = max(sum(len(row.input_ids) for row in pack) for pack in packs)

        def padded(parts: list[Sequence[int]], fill: int) -> list[int]:
            values = [value for part in parts for value in part]
            return values + [fill] * (longest - len(values))

        pad = self.tokenizer.pad_token_id
        ids = [padded([row.input_ids for row in pack], pad) for pack in packs]
        labels = [padded([row.labels for row in pack], IGNORE) for pack in packs]
        positions = [padded([range(len(row.input_ids)) for row in pack], 0) for pack in packs]
        return {
            "input_ids": np.array(ids, np.int64),
            "labels": np.array(labels, np.int64),
            "position_ids": np.array(positions, np.int64),
            **self.stack_images([[i for row in pack for i in row.images] for pack in packs]),
        }

    @cached_property
    def blank(self) -> Arrays:
        """A black image, as `pixels` gives it."""
        size = self.image_processor.crop_size
        return self.pixels(PilImage.new("RGB", (int(size["width"]), int(size["height"]))))

    @cached_property
    def _begin(self) -> str:
        tokenizer = self.tokenizer
        adds = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        return str(tokenizer.bos_token) if adds else ""

    def _tokens_of(self, image: Arrays) -> str:
        """An image's tokens by the processor's own count, which wants a batch of images."""
        batch = {key: [value] for key, value in image.items()}
        return str(self.processor.replace_image_token(batch, 0))


def _first_fit(rows: Sequence[EncodedRow], width: int) -> list[list[EncodedRow]]:
    packs: list[list[EncodedRow]] = []
    room: list[int] = []  # left in each pack
    for row in rows:
        length = len(row.input_ids)
        if length > width:
            raise ValueError(f"A row of {length} tokens does not fit into a width of {width}.")
        at = next((i for i, left in enumerate(room) if left >= length), len(packs))
        if at == len(packs):
            packs.append([])
            room.append(width)
        packs[at].append(row)
        room[at] -= length
    return packs


def normalised(model: Any, pixels: torch.Tensor, normalisation: Normalisation) -> torch.Tensor:
    """uint8 pixels [..., C, H, W] as the tower was trained on them, in the model's dtype."""
    scaled = pixels.float() / 255
    mean, std = (scaled.new_tensor(v).view(-1, 1, 1) for v in normalisation)
    return ((scaled - mean) / std).to(model.dtype)


def image_features(model: Any, batch: Tensors, normalisation: Normalisation) -> torch.Tensor:
    """What the batch's images become in the decoder's input, [F, D]."""
    pixels = normalised(model, batch["pixel_values"], normalisation)
    return torch.cat(model.model.get_image_features(pixels).pooler_output)


def decode(model: Any, batch: Tensors, features: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] of a batch that is padded on the right, or packed."""
    packed = batch.get("position_ids")
    # transformers' flash attention tells packed conversations apart in batches of one row only
    assert packed is None or model.config._attn_implementation in ("sdpa", "eager")
    hidden = model.model.language_model(
        inputs_embeds=embed(model, batch, features),
        attention_mask=batch["attention_mask"] if packed is None else None,
        position_ids=packed,
        use_cache=False,
    ).last_hidden_state
    logits: torch.Tensor = model.lm_head(hidden)
    return logits


def forward(model: Any, batch: Tensors, normalisation: Normalisation) -> torch.Tensor:
    """Logits [B, T, V] of a training batch."""
    return decode(model, batch, image_features(model, batch, normalisation))


def prompt(model: Any, batch: Tensors, features: torch.Tensor) -> dict[str, Any]:
    """For `model.generate`, which decodes from the embeddings and answers with prompt and all;
    rows may have any number of images."""
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "inputs_embeds": embed(model, batch, features),
    }


def generation(model: Any, batch: Tensors, normalisation: Normalisation) -> dict[str, Any]:
    """For `model.generate`, see `prompt`."""
    return prompt(model, batch, image_features(model, batch, normalisation))


def flops(config: Any, batch: Arrays) -> Flops:
    """Forward FLOPs of a batch: every image (or tile) that the tower runs, a blank one included,
    and the tokens that are there."""
    vision, text = config.vision_config, config.text_config
    images = batch["pixel_values"].shape[0]
    patches = (vision.image_size // vision.patch_size) ** 2
    width, heads = vision.hidden_size, vision.num_attention_heads
    lengths = [patches + 1] * images  # the class token
    layer = self_attention(lengths, width, heads, heads, width // heads, causal=False)
    layer += mlp(sum(lengths), width, vision.intermediate_size, gated=False)
    tower = linear(images * patches, vision.num_channels * vision.patch_size**2, width)
    tower += vision.num_hidden_layers * layer  # all of them run, whichever is read

    chosen = config.vision_feature_layer
    read = 1 if isinstance(chosen, int) else len(chosen)
    kept = images * (patches + (config.vision_feature_select_strategy == "full"))
    out = text.hidden_size
    return Flops(
        vision=tower,
        projector=linear(kept, read * width, out) + linear(kept, out, out),
        language=decoder(text, _lengths(batch), text.num_hidden_layers),
    )


def _lengths(batch: Arrays) -> list[int]:
    """Tokens of each conversation."""
    if "position_ids" not in batch:
        return [int(n) for n in batch["attention_mask"].sum(1)]
    starts = np.flatnonzero(batch["position_ids"] == 0)
    spans = np.diff(np.append(starts, batch["position_ids"].size))
    return [int(n) for n in spans if n > 1]  # each token of the padding is a span of its own


def groups(config: Any) -> dict[str, tuple[str, ...]]:
    return {
        "vision": ("model.vision_tower.",),
        "projector": ("model.multi_modal_projector.",),
        "language": ("model.language_model.", "lm_head."),
    }


FAMILY = Family("llava", LlavaEncoder, forward, generation, groups, flops, packs=True)
