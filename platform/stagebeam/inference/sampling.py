"""Drawing one token for each row of a batch, each row from a random stream of its own."""

from __future__ import annotations

import torch


def draw_tokens(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
    generators: list[torch.Generator],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [R] and their log-probabilities [R] at temperature 1.

    `logits` [R, V]; `temperature`, `top_p` [R]; a temperature of 0 takes the best token. Every row
    consumes one number of its generator whatever its neighbours do, so its text does not depend
    on them. Ties of top-p go to the likelier tokens; the likeliest one is always kept.
    """
    logits = logits.float().cpu()
    logprobs = logits.log_softmax(-1)
    best = logits.argmax(-1)
    scaled = logits / temperature.clamp_min(1e-6)[:, None]
    probabilities, order = torch.sort(scaled.softmax(-1), dim=-1, descending=True, stable=True)
    before = probabilities.cumsum(-1) - probabilities
    kept = probabilities * (before < top_p[:, None])
    # float64: the last token's cumulative weight must not fall below the drawn number
    cumulative = kept.double().cumsum(-1)
    drawn = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
    place = (cumulative <= (drawn * cumulative[:, -1])[:, None]).sum(-1, keepdim=True)
    place = place.clamp_max(logits.shape[-1] - 1)
    sampled = order.gather(-1, place)[:, 0]
    tokens = torch.where(temperature > 0, sampled, best)
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]
