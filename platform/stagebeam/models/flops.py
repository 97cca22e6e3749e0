"""Floating-point operations of a forward pass, counted from shapes.

A multiplication and an addition are two operations. Counted are matrix products, attention scores
included: in full where tokens look both ways and for half of the square where they look back only.
Norms, activations and embeddings lookups are left out (under 1 % of a layer). A backward pass
costs twice the forward one, recomputing activations once more (PaLM, arXiv 2204.02311,
appendix B; that one counts causal attention in full).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Flops:
    """Of one forward pass, by trainable group (models/family.py)."""

    vision: float = 0.0
    projector: float = 0.0
    cross_attention: float = 0.0
    language: float = 0.0  # the head included

    @property
    def total(self) -> float:
        return self.vision + self.projector + self.cross_attention + self.language


def linear(tokens: float, inputs: int, outputs: int) -> float:
    """A matrix product of `tokens` rows."""
    return 2.0 * tokens * inputs * outputs


def scores(queries_by_keys: float, width: int) -> float:
    """Attention's two products, scores and their sum of values, over all heads: `width` is heads
    times the size of one."""
    return 4.0 * queries_by_keys * width


def self_attention(
    lengths: Iterable[int], hidden: int, heads: int, kv_heads: int, head_dim: int, *, causal: bool
) -> float:
    """Projections and scores of one layer over sequences of these lengths."""
    lengths = list(lengths)
    tokens, square = sum(lengths), float(sum(n * n for n in lengths))
    width = heads * head_dim
    projections = linear(tokens, hidden, 2 * width + 2 * kv_heads * head_dim)
    return projections + scores(square / 2 if causal else square, width)


def mlp(tokens: float, hidden: int, intermediate: int, *, gated: bool) -> float:
    """Two matrices, or three where one is a gate."""
    return linear(tokens, hidden, intermediate) * (3 if gated else 2)


def decoder(text: Any, lengths: Iterable[int], layers: int) -> float:
    """So many layers of a Llama-like decoder of this config and its head, over rows of these
    lengths."""
    lengths = list(lengths)
    hidden, heads = text.hidden_size, text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or hidden // heads
    kv_heads = text.num_key_value_heads
    layer = self_attention(lengths, hidden, heads, kv_heads, head_dim, causal=True)
    layer += mlp(sum(lengths), hidden, text.intermediate_size, gated=True)
    return layers * layer + linear(sum(lengths), hidden, text.vocab_size)
