"""Bytes that a forward pass keeps for the backward one, counted from shapes.

The counting follows Korthikanti et al. (arXiv 2205.05198, section 4.1), for what the layers of
transformers 5 run: every tensor that an operation saves for its gradient, each storage once. With
s bytes an element of the compute dtype, N tokens (padding included), D the width, F the MLP's
inner width and Q heads times their size, a layer saves

    RMSNorm          N (4D + sD)      its input in float32, and the normalised input
    LayerNorm        N sD             its input
    linear layers    N sD             the norm's output, which q, k and v (or gate and up) share
    attention        N 4sQ + 4NH      q, k, v and the result, repeated where heads share keys, and
                                      the logarithm of the softmax' sum for H heads; the scores are
                                      never stored (FlashAttention, arXiv 2205.14135)
    its mask         s B T T          made from booleans by each layer, where rows are padded
    gated MLP        N 4sF            gate and up, the activated gate, and the input of down
    plain MLP        N 2sF            one more where the activation is `quick_gelu`
    tanh-gated       N 2sD            Mllama's cross-attention and global vision layers

A cross-attention layer has keys and values of S vision tokens a row, 2sQ and K (4 + s) bytes each
(its keys are normalised), and the norm of q, 4Q + sQ a token. Qwen's tower has RMSNorms, a gated
MLP, and 7sD a token in its attention. A layer that is recomputed keeps its input alone, N sD, and
the whole of one layer comes back at a time. Dropout, biases and rotary tables are left out (each
well under 1 %).

Shapes: B rows, T tokens of the longest, S vision tokens of a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from stagebeam.models.encoder import Arrays
from stagebeam.training.outline import Outline

# Which groups lie before a group: gradients flow back through it only towards a trained one.
_BEFORE = {
    "vision": ("vision",),
    "projector": ("vision", "projector"),
    "cross_attention": ("vision", "projector", "cross_attention", "language"),
    "language": ("vision", "projector", "cross_attention", "language"),
}


@dataclass(frozen=True, slots=True)
class Saved:
    """Bytes of a group: of its layers, of the inputs of those, of the largest layer, and what it
    saves beside layers."""

    layers: float
    inputs: float
    largest: float
    beside: float


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes on one rank for one micro-batch."""

    kept: dict[str, float]  # from forward to backward, by group
    recomputed: float  # the largest layer that is computed again
    logits: float  # at their peak: float32 log-probabilities, their gradient, the logits' gradient
    log_probabilities: float  # of which stay until the backward pass, float32
    images: float  # the batch's arrays as they come, and the pixels scaled to floats

    @property
    def saved(self) -> float:
        """What lies in memory when the forward pass is done."""
        return sum(self.kept.values()) + self.log_probabilities


def flows(outline: Outline) -> set[str]:
    """Groups that gradients flow through: trained ones and those behind them."""
    trained = {weight.group for weight in outline.weights if weight.trained}
    return {group for group, before in _BEFORE.items() if trained & set(before)}


def activations(outline: Outline, arrays: Arrays, size: int, checkpointing: bool) -> Activations:
    """Of one micro-batch, given as the encoder's arrays (only their shapes count).

    `size` is the bytes of an element of the compute dtype. Raises ValueError for a family whose
    layers are not known here.
    """
    name = outline.family.name
    if name not in _TOWERS:
        raise ValueError(f"The activations of {name} models are not known: {', '.join(_TOWERS)}.")
    tower, places = _TOWERS[name](outline.config, arrays, size)
    groups = tower | _decoder(outline.config.text_config, arrays, places, size)
    flowing = flows(outline)
    kept: dict[str, float] = {}
    recomputed = 0.0
    for group, saved in groups.items():
        if group not in flowing:
            continue
        if checkpointing and outline.recomputes(group):
            kept[group] = saved.inputs + saved.beside
            if group == "language":
                kept[group] += _mask(arrays)  # as booleans, which all the layers hold on to
            recomputed = max(recomputed, saved.largest)
        else:
            kept[group] = saved.layers + saved.beside
    rows, width = arrays["input_ids"].shape
    table = 4.0 * rows * (width - 1) * outline.config.text_config.vocab_size
    pixels = arrays["pixel_values"]
    batch = float(sum(array.size * array.itemsize for array in arrays.values()))
    return Activations(kept, recomputed, 3 * table, table, batch + 4.0 * pixels.size)


def _decoder(text: Any, arrays: Arrays, places: int, s: int) -> dict[str, Saved]:
    """The language group, and cross-attention where the decoder has it; `places` are S."""
    rows, length = arrays["input_ids"].shape
    tokens = rows * length
    heads, width = text.num_attention_heads, text.hidden_size
    head = getattr(text, "head_dim", None) or width // heads
    query, keys = heads * head, text.num_key_value_heads * head
    norm = tokens * (4 + 2 * s) * width  # the linear layers' input included
    mlp = tokens * 4 * s * text.intermediate_size
    attention = tokens * (4 * s * query + 4 * heads)
    layer = 2 * norm + attention + mlp + s * _mask(arrays)
    crossing = len(getattr(text, "cross_attention_layers", ()))
    own = text.num_hidden_layers - crossing
    last = norm  # the final norm and the head's input
    groups = {"language": Saved(own * layer, own * tokens * s * width, layer, last)}
    if crossing:
        cross = 2 * norm + mlp + tokens * ((4 + 3 * s) * query + 4 * heads + 2 * s * width)
        cross += rows * places * (2 * s * query + (4 + s) * keys)
        shared = rows * places * s * width + s * rows * length * places  # states and mask
        inputs = crossing * tokens * s * width
        groups["cross_attention"] = Saved(crossing * cross, inputs, cross, shared)
    return groups


def _mask(arrays: Arrays) -> int:
    """Elements of the decoder's mask; a batch without padding has none."""
    rows, length = arrays["input_ids"].shape
    mask = arrays.get("attention_mask")
    return rows * length**2 if mask is None or not np.asarray(mask).all() else 0


def _plain_layer(tokens: float, width: int, inner: int, heads: int, s: int, mlp: int) -> float:
    """A vision layer: LayerNorms, attention, MLP of which `mlp` tensors are saved."""
    return tokens * (s * (4 * width + 4 * width + mlp * inner) + 4 * heads)


def _mllama(config: Any, arrays: Arrays, s: int) -> tuple[dict[str, Saved], int]:
    vision, text = config.vision_config, config.text_config
    slots = arrays["aspect_ratio_mask"].shape[0] * arrays["aspect_ratio_mask"].shape[1]
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    tiles = slots * vision.max_num_tiles
    row = (patches + -patches % 8) * vision.max_num_tiles  # tokens of an image in the tower
    tokens = slots * row
    width = vision.hidden_size
    shape = (tokens, width, vision.intermediate_size, vision.attention_heads, s, 2)
    layer, gated = _plain_layer(*shape), _plain_layer(*shape) + 2 * tokens * s * width
    layers = vision.num_hidden_layers * layer + vision.num_global_layers * gated
    count = vision.num_hidden_layers + vision.num_global_layers
    pixels = tiles * vision.num_channels * vision.image_size**2
    normed = (2 * tiles * patches + tokens) * width  # three norms' inputs, one of them padded
    beside = s * (pixels + normed + slots * row**2)  # and the mask
    into = tiles * patches * s * vision.vision_output_dim
    groups = {
        "vision": Saved(layers, count * tokens * s * width, gated, beside),
        "projector": Saved(0.0, 0.0, 0.0, into),
    }
    places = arrays["aspect_ratio_mask"].shape[1] * vision.max_num_tiles * patches
    assert text.cross_attention_layers, "an Mllama decoder looks at its images"
    return groups, places


def _clip(config: Any, arrays: Arrays, s: int) -> tuple[dict[str, Saved], int]:
    vision, text = config.vision_config, config.text_config
    images = arrays["pixel_values"].shape[0]
    patches = (vision.image_size // vision.patch_size) ** 2
    tokens, width = images * (patches + 1), vision.hidden_size
    mlp = 3 if vision.hidden_act == "quick_gelu" else 2
    heads = vision.num_attention_heads
    layer = _plain_layer(tokens, width, vision.intermediate_size, heads, s, mlp)
    count = vision.num_hidden_layers
    pixels = images * vision.num_channels * vision.image_size**2
    chosen = config.vision_feature_layer
    read = 1 if isinstance(chosen, int) else len(chosen)
    into = images * patches * s * (read * width + 2 * text.hidden_size)
    groups = {
        "vision": Saved(
            count * layer, count * tokens * s * width, layer, s * (pixels + tokens * width)
        ),
        "projector": Saved(0.0, 0.0, 0.0, into),
    }
    return groups, 0


def _qwen(config: Any, arrays: Arrays, s: int) -> tuple[dict[str, Saved], int]:
    vision = config.vision_config
    tokens, width = arrays["pixel_values"].shape[0], vision.hidden_size
    norm = tokens * (4 + 2 * s) * width
    # q, k and v come in one storage, which v keeps beside the rotated q and k
    attention = tokens * (7 * s * width + 4 * vision.num_heads)
    layer = 2 * norm + attention + tokens * 4 * s * vision.intermediate_size
    volume = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    inputs = vision.depth * tokens * s * width
    groups = {
        "vision": Saved(vision.depth * layer, inputs, layer, tokens * s * volume),
        "projector": Saved(0.0, 0.0, 0.0, tokens * (4 + 4 * s) * width),
    }
    return groups, 0


_TOWERS = {"mllama": _mllama, "llava": _clip, "llava_next": _clip, "qwen2_5_vl": _qwen}


def full_rows(outline: Outline, rows: int, tokens: int) -> dict[str, Any]:
    """Arrays of rows without padding, each with an image of all the tiles that there may be (or
    of half the row's tokens, where images have any size), for when there are no shards to read.
    They have shapes and hold next to nothing.
    """
    config, name = outline.config, outline.family.name
    vision = config.vision_config
    ones = np.broadcast_to(np.int64(1), (rows, tokens))
    text = {"input_ids": ones, "labels": ones, "attention_mask": ones}
    if name == "qwen2_5_vl":
        side = vision.spatial_merge_size * math.isqrt(tokens // 2)  # patches
        pixels = vision.in_channels * vision.patch_size**2
        return {
            **text,
            "pixel_values": np.broadcast_to(np.uint8(0), (rows * side * side, pixels)),
            "image_grid_thw": np.array([[1, side, side]] * rows),
        }
    tiles = 1
    if name == "mllama":
        tiles = vision.max_num_tiles
    elif name == "llava_next":
        tiles += max(h * w // vision.image_size**2 for h, w in config.image_grid_pinpoints)
    picture = (rows * tiles, vision.num_channels, vision.image_size, vision.image_size)
    arrays = {**text, "pixel_values": np.broadcast_to(np.uint8(0), picture)}
    if name == "mllama":
        arrays["aspect_ratio_mask"] = np.broadcast_to(np.int64(1), (rows, 1, tiles))
        arrays["cross_attention_mask"] = np.broadcast_to(np.uint8(1), (rows, tokens, 1, tiles))
    return arrays
