"""Drawing one token for each row of a batch, each row from a random stream of its own.

Shapes: R rows, V vocabulary, K likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

_LIKELIEST = 256  # sorting a vocabulary of 128,000 costs more than a small model's pass
_AT_ONCE = 64


def numbers(seed: int) -> Iterator[float]:
    """A row's random stream, uniform in [0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.rand(_AT_ONCE, generator=generator, dtype=torch.float64).tolist()


def draw_tokens(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
    drawn: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [R] and their log-probabilities [R] at temperature 1.

    `logits` [R, V]; `temperature`, `top_p` and the random numbers `drawn` (float64) [R]; a
    temperature of 0 takes the best token. A row's token does not depend on the other rows. Ties of
    top-p go to the likelier tokens; the likeliest one is always kept.
    """
    logits = logits.float()
    logprobs = logits.log_softmax(-1)
    tokens = logits.argmax(-1)
    if bool((temperature > 0).any()):
        scaled = logits / temperature.clamp_min(1e-6)[:, None]
        sampled = _nucleus(scaled.softmax(-1), top_p, drawn)
        tokens = torch.where(temperature > 0, sampled, tokens)
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


def _nucleus(probabilities: torch.Tensor, top_p: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Tokens [R]. Of a large vocabulary only the likeliest are sorted, where they are enough."""
    count = probabilities.shape[-1]
    likeliest, order = probabilities.topk(min(_LIKELIEST, count), dim=-1)
    tokens = _pick(likeliest, order, top_p, drawn)
    wide = likeliest.sum(-1) < top_p
    if count > _LIKELIEST and bool(wide.any()):
        everything = torch.sort(probabilities[wide], dim=-1, descending=True, stable=True)
        tokens[wide] = _pick(*everything, top_p[wide], drawn[wide])
    return tokens


def _pick(
    probabilities: torch.Tensor, order: torch.Tensor, top_p: torch.Tensor, drawn: torch.Tensor
) -> torch.Tensor:
    """One of each row's tokens `order` [R, K], which are sorted by their probabilities [R, K]."""
    before = probabilities.cumsum(-1) - probabilities
    kept = probabilities * (before < top_p[:, None])
    # float64: the last token's cumulative weight must not fall below the drawn number
    cumulative = kept.double().cumsum(-1)
    place = (cumulative <= (drawn * cumulative[:, -1])[:, None]).sum(-1, keepdim=True)
    return order.gather(-1, place.clamp_max(order.shape[-1] - 1))[:, 0]
