"""Attention for decoding: many rows, one new token each, over keys and values that lie in slots.

Registered with transformers as `stagebeam`; elsewhere (a prefill, `generate`, training) it is
transformers' own `sdpa`. It differs where that would copy: query heads that share a key head become
queries of that head, and rows that look at the same image share its keys and values.

Shapes: R rows, H query heads, N key heads, T new tokens of a row, W columns of the cache, D width
of a head, G images (or sets of images) that rows look at, M the most rows of one of those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from stagebeam.models.branches import Branches

NAME = "stagebeam"


@dataclass(frozen=True, slots=True)
class Shared:
    """Which rows look at which keys and values in the layers that hold images."""

    layers: frozenset[int]
    rows: torch.Tensor  # [G, M] row at each place; places that are too many repeat a row
    places: torch.Tensor  # [R] where each row's result is among G * M

    @classmethod
    def of(cls, layers: frozenset[int], groups: Sequence[int], device: torch.device) -> Self:
        """From each row's group, 0 to G - 1."""
        members: list[list[int]] = [[] for _ in range(max(groups) + 1)]
        for row, group in enumerate(groups):
            members[group].append(row)
        most = max(map(len, members))
        rows = [rows + [rows[0]] * (most - len(rows)) for rows in members]
        places = [group * most + members[group].index(row) for row, group in enumerate(groups)]
        return cls(layers, torch.tensor(rows, device=device), torch.tensor(places, device=device))


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    shared: Shared | None = None,
    branches: Branches | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: `query` [R, H, T, D], `key` and `value` [R, N, W, D] (G for R in
    layers that hold images), the mask [R, 1, T, W] (G, again); gives [R, T, H, D]."""
    if branches is not None and module.layer_idx in branches.layers:
        return branches.attend(module, query, key, value, scaling), None
    if query.shape[2] != 1:
        out: torch.Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )[0]
        return out, None
    rows, heads, _, width = query.shape
    kept = key.shape[1]
    folded = query.view(rows, kept, heads // kept, width)
    if shared is None or module.layer_idx not in shared.layers:
        out = _scaled(folded, key, value, attention_mask, scaling)
    else:
        groups, most = shared.rows.shape
        together = folded[shared.rows].transpose(1, 2).flatten(2, 3)  # [G, N, M * H / N, D]
        out = _scaled(together, key, value, attention_mask, scaling)
        out = out.view(groups, kept, most, heads // kept, width).transpose(1, 2)
        out = out.flatten(0, 1)[shared.places]
    return out.reshape(rows, 1, heads, width), None


def _scaled(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
