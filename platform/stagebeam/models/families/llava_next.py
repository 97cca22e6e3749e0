"""LLaVA-NeXT (LLaVA-1.6): LLaVA that sees an image whole, as a thumbnail, and in tiles.

The tiles are cut from the image padded to the best of a list of grids; the features of the
padding are dropped again, and each line of the rest ends with a learned `image_newline`. That is
why an image's token count follows from its original size. Everything but the images is LLaVA's.

`image_newline` is a parameter of transformers' inner model, used outside that module's forward.
ZeRO-3 gathers such a parameter where it is first read during the engine's forward, registers it
as external to the module that was running (DeepSpeed's `register_external_parameter`), and
gathers it with that module from then on. Reading it is therefore collective like running a
module, and all ranks do, since the blank image has tiles and hence lines.

Shapes: N images, P tiles of all images, thumbnails included, otherwise as in families/llava.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image as PilImage

from stagebeam.models.encoder import Arrays
from stagebeam.models.families import llava
from stagebeam.models.family import Family, Normalisation, Tensors


class LlavaNextEncoder(llava.LlavaEncoder):
    """LLaVA's, with a thumbnail and tiles for each image."""

    def pixels(self, picture: PilImage.Image) -> Arrays:
        """`pixel_values` uint8 [tiles, C, H, W], the thumbnail first, and `image_sizes` [2]: the
        height and width that the image came in, pixels."""
        out = self.image_processor(
            picture, do_rescale=False, do_normalize=False, return_tensors="np"
        )
        return {
            "pixel_values": out["pixel_values"][0].astype(np.uint8),
            "image_sizes": np.asarray(out["image_sizes"][0], np.int64),
        }

    def stack_images(self, rows: Sequence[Sequence[Arrays]]) -> Arrays:
        """`pixel_values` [P, C, H, W] and `image_sizes` [N, 2] of all rows, one after another."""
        images = [image for row in rows for image in row] or [self.blank]
        return {
            "pixel_values": np.concatenate([image["pixel_values"] for image in images]),
            "image_sizes": np.stack([image["image_sizes"] for image in images]),
        }


def image_features(model: Any, batch: Tensors, normalisation: Normalisation) -> torch.Tensor:
    """What the batch's images become in the decoder's input, [F, D]."""
    pixels = llava.normalised(model, batch["pixel_values"], normalisation)
    # transformers reads each size on the host several times over: one transfer for all
    sizes = batch["image_sizes"].tolist()
    return torch.cat(model.model.get_image_features(pixels, sizes).pooler_output)


def forward(model: Any, batch: Tensors, normalisation: Normalisation) -> torch.Tensor:
    """Logits [B, T, V] of a training batch."""
    return llava.decode(model, batch, image_features(model, batch, normalisation))


def generation(model: Any, batch: Tensors, normalisation: Normalisation) -> dict[str, Any]:
    """For `model.generate`, see `llava.prompt`."""
    return llava.prompt(model, batch, image_features(model, batch, normalisation))


def groups(config: Any) -> dict[str, tuple[str, ...]]:
    of_llava = llava.groups(config)
    return {**of_llava, "projector": (*of_llava["projector"], "model.image_newline")}


FAMILY = Family(
    "llava_next", LlavaNextEncoder, forward, generation, groups, llava.flops, packs=True
)
