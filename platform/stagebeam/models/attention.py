"""Attention for decoding: many rows, a new token or a few each, over keys and values that lie in
slots.

Registered with transformers as `stagebeam`; elsewhere (a prefill, `generate`, training) it is
transformers' own `sdpa`. It differs where that would copy: query heads that share a key head become
queries of that head, and so do tokens of one row, or rows that look at the same image.

Where rows bring different numbers of tokens, the model sees all tokens side by side, [1, Q], so
that nothing but attention is padded to the longest row.

Shapes: R rows, H query heads, N key heads, T new tokens of a row, W columns of the cache, D width
of a head, Q queries (rows of one token, or tokens side by side), G what they share (images, sets of
images, rows), M the most queries of one of those.
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
    """Which queries look at which keys and values in some layers."""

    layers: frozenset[int]
    queries: torch.Tensor  # [G, M] query at each place; places that are too many repeat one
    places: torch.Tensor  # [Q] where each query's result is among G * M

    @classmethod
    def of(cls, layers: frozenset[int], groups: Sequence[int], device: torch.device) -> Self:
        """From each query's group, 0 to G - 1."""
        members: list[list[int]] = [[] for _ in range(max(groups) + 1)]
        inside = []
        for query, group in enumerate(groups):
            inside.append(len(members[group]))
            members[group].append(query)
        most = max(map(len, members))
        queries = [each + each[:1] * (most - len(each)) for each in members]
        places = [group * most + place for group, place in zip(groups, inside, strict=True)]
        return cls(
            layers, torch.tensor(queries, device=device), torch.tensor(places, device=device)
        )


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    shared: Shared | None = None,
    beside: Shared | None = None,
    branches: Branches | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: `query` [R, H, T, D], `key` and `value` [R, N, W, D] (G for R in
    layers that hold images), the mask [R, 1, T, W] (G, again); gives [R, T, H, D].

    `shared` says which rows look at which image. With `beside`, which says which tokens are of
    which row, `query` is [1, H, Q, D] and what is given [Q, 1, H, D]; the mask is [R, 1, M, W].
    With `branches` the tokens are a tree in one row.
    """
    if branches is not None and module.layer_idx in branches.layers:
        return branches.attend(module, query, key, value, scaling), None
    if beside is not None:
        query = query.transpose(0, 2)
    elif query.shape[2] != 1:
        out: torch.Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )[0]
        return out, None
    count, heads, _, width = query.shape
    kept = key.shape[1]
    folded = query.reshape(count, kept, heads // kept, width)
    group = beside
    if shared is not None and module.layer_idx in shared.layers:
        group = shared
    if group is None or module.layer_idx not in group.layers:
        out = _scaled(folded, key, value, attention_mask, scaling)
    else:
        groups, most = group.queries.shape
        together = folded[group.queries].transpose(1, 2).flatten(2, 3)  # [G, N, M * H / N, D]
        if attention_mask is not None and attention_mask.shape[2] > 1:
            attention_mask = attention_mask.repeat_interleave(heads // kept, dim=2)
        out = _scaled(together, key, value, attention_mask, scaling)
        out = out.view(groups, kept, most, heads // kept, width).transpose(1, 2)
        out = out.flatten(0, 1)[group.places]
    return out.reshape(count, 1, heads, width), None


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
