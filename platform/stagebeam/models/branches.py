"""Attention over a tree of tokens, one stretch of it after another: over all of the tree at once,
scores would grow with the square of its tokens, nearly all of them of tokens that do not see each
other.

Shapes: T tokens of the tree, S of a stretch, W columns of the cache, H query heads, N key heads, D
width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward


@dataclass(frozen=True, slots=True)
class Stretch:
    """Tokens of the tree that follow one another, and what they may look at."""

    tokens: slice
    columns: slice | torch.Tensor  # of the cache
    mask: torch.Tensor  # [1, 1, S, columns] added to scores


@dataclass(frozen=True, slots=True)
class Branches:
    """A whole tree, in the layers whose keys and values grow with the text."""

    layers: frozenset[int]
    stretches: tuple[Stretch, ...]

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
    ) -> torch.Tensor:
        """`query` [1, H, T, D], `key` and `value` [1, N, W, D]; gives [1, T, H, D]."""
        parts = [
            sdpa_attention_forward(
                module,
                query[:, :, each.tokens],
                key[:, :, each.columns],
                value[:, :, each.columns],
                each.mask,
                scaling=scaling,
            )[0]
            for each in self.stretches
        ]
        return torch.cat(parts, dim=1)
