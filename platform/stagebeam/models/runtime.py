"""A family's forward pass as an engine needs it: any rows, any tokens, over keys and values that
the engine holds.

Shapes: R rows, T new tokens of a row, W columns of the cache, S vision tokens, F image features,
L layers, N key heads, D width of a head, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear
from transformers import Cache

from stagebeam.models.attention import NAME, Shared
from stagebeam.models.branches import Branches
from stagebeam.models.encoder import Arrays
from stagebeam.models.last_layer import spare_last_layer, wanting
from stagebeam.models.load import Loaded
from stagebeam.models.norms import fuse_norms


@dataclass(frozen=True, slots=True)
class KvShape:
    """Of the layers whose keys and values grow with the text."""

    layers: tuple[int, ...]  # their places in the model
    heads: int
    width: int


@dataclass(frozen=True, slots=True)
class Sight:
    """What a set of images becomes, once: features [F, D] for the places of image tokens, or keys
    and values [L, 2, 1, N, S, D] of the layers that look at them. Neither where there is no image.
    """

    images: int = 0
    features: torch.Tensor | None = None
    kv: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.features, self.kv) if t is not None)


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass. `at` are the tokens whose logits are wanted; None: the last ones."""

    ids: torch.Tensor  # [R, T]
    positions: torch.Tensor  # [R, T], or [R, T, 3] where they have axes
    mask: torch.Tensor  # [R, 1, T, W] bool: which columns a token sees, but for `branches`
    features: torch.Tensor | None = None  # for the image tokens among `ids`, in their order
    looks: torch.Tensor | None = None  # [R, 1, T, S] bool: which vision tokens a token sees ...
    touched: torch.Tensor | None = None  # [R, 1, T, 1]: 0 where it sees none of its own
    shared: Shared | None = None  # decoding: `looks` is then [G, 1, 1, S]
    beside: Shared | None = None  # tokens of several rows side by side, R = 1; see `attend`
    branches: Branches | None = None  # of a tree, in one row
    at: torch.Tensor | None = None


class Runtime(ABC):
    """One loaded model. All methods run where the model lies, and keep no gradients."""

    # Whether layers of the model hold images; if not, images stand in the text.
    shows_images = False

    def __init__(self, loaded: Loaded) -> None:
        self.model, self.encoder = loaded.model, loaded.encoder
        text: Any = loaded.model.config.text_config
        decoder = loaded.model.model.language_model
        decoder.set_attn_implementation(NAME)
        if loaded.model.dtype == torch.float32:
            fuse_norms(decoder)
        spare_last_layer(decoder)
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self.kv = KvShape(self.growing(text), text.num_key_value_heads, width)
        self.layers: int = text.num_hidden_layers

    def growing(self, text: Any) -> tuple[int, ...]:
        """The layers whose keys and values grow with the text."""
        return tuple(range(text.num_hidden_layers))

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.dtype
        return dtype

    @abstractmethod
    def see(self, images: Sequence[Arrays]) -> Sight:
        """Encode images, at least one."""

    @abstractmethod
    def hidden(self, step: Pass, cache: Cache) -> torch.Tensor:
        """The decoder's output [R, T, D]; the cache takes the new keys and values."""

    def positions(self, ids: Sequence[int], images: Sequence[Arrays]) -> torch.Tensor:
        """Of a row's tokens, [T] or [T, 3]; a token behind them has one more than the last."""
        return torch.arange(len(ids))

    def spread(self, places: torch.Tensor) -> torch.Tensor:
        """Places of text [R, T] as positions: along all axes alike, where there are axes."""
        return places

    def looks(
        self, ids: Sequence[int], images: Sequence[Arrays]
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Which vision tokens of its images each token sees, [T, S] bool, and whether it sees any
        by rights, [T]; None where images stand in the text."""
        return None

    @torch.inference_mode()
    def run(self, step: Pass, cache: Cache) -> torch.Tensor:
        """Logits [R, A, V] of the A tokens `step.at`."""
        return self.head(self.hidden_at(step, cache))

    @torch.inference_mode()
    def hidden_at(self, step: Pass, cache: Cache) -> torch.Tensor:
        """What the logits would be made of, [R, A, D]."""
        at = slice(-1, None) if step.at is None else step.at
        with wanting(at):
            return self.hidden(step, cache)[:, at]

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model.lm_head(hidden)
        return logits

    def options(self, hidden: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
        """The logits of a few tokens alone, [R, O] of `hidden` [R, D]."""
        head = self.model.lm_head
        bias = None if head.bias is None else head.bias[list(tokens)]
        return linear(hidden, head.weight[list(tokens)], bias)
