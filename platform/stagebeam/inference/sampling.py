"""Drawing one token for each row of a batch, each row from a random stream of its own.

Shapes: R rows, V vocabulary, K likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Self

import torch

from stagebeam.inference.types import Sampling

_LIKELIEST = 64  # sorting a whole vocabulary costs more than a small model's pass
_AT_ONCE = 64


def numbers(seed: int) -> Iterator[float]:
    """A row's random stream, uniform in [0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.rand(_AT_ONCE, generator=generator, dtype=torch.float64).tolist()


class Luck:
    """A row's random stream seen ahead: each token that is kept spends a number of it, and a guess
    that fails spends none."""

    __slots__ = ("_numbers", "_seen", "_spent")

    def __init__(self, seed: int) -> None:
        self._numbers, self._seen, self._spent = numbers(seed), list[float](), 0

    def ahead(self, count: int) -> list[float]:
        """The next numbers, which stay the next ones."""
        end = self._spent + count
        if end > len(self._seen):
            self._seen.extend(islice(self._numbers, end - len(self._seen)))
        return self._seen[self._spent : end]

    def spend(self, count: int) -> None:
        """At most as many as were seen."""
        self._spent += count


@dataclass(frozen=True, slots=True, eq=False)
class Manner:
    """How each row is drawn, laid out once for as long as the rows stay."""

    temperature: torch.Tensor  # [R, 1]; 1 for a greedy row
    top_p: torch.Tensor  # [R]
    best: torch.Tensor | None  # [R] which rows are greedy; None where none is
    greedy: bool  # all rows are
    whole: torch.Tensor | None  # rows whose top_p leaves nothing out; None where there are none
    cut: torch.Tensor | None  # the other rows; None where there are none

    @classmethod
    def of(cls, rows: Sequence[Sampling], device: torch.device) -> Self:
        best = [row.temperature == 0 for row in rows]
        whole = [at for at, row in enumerate(rows) if row.top_p >= 1]
        cut = [at for at, row in enumerate(rows) if row.top_p < 1]
        return cls(
            temperature=torch.tensor([[row.temperature or 1.0] for row in rows], device=device),
            top_p=torch.tensor([row.top_p for row in rows], device=device),
            best=torch.tensor(best, device=device) if any(best) else None,
            greedy=all(best),
            whole=torch.tensor(whole, device=device) if whole else None,
            cut=torch.tensor(cut, device=device) if cut else None,
        )


def draw_tokens(
    logits: torch.Tensor, manner: Manner, luck: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [R] and their log-probabilities [R] at temperature 1.

    `logits` [R, V]; `luck` is a number in [0, 1) for each row; a temperature of 0 takes the best
    token. A row's token does not depend on the other rows. Ties of top-p go to the likelier
    tokens; the likeliest one is always kept.
    """
    logits = logits.float()
    logprobs = logits.log_softmax(-1)
    if manner.greedy:
        tokens = logits.argmax(-1)
    else:
        drawn = torch.tensor(luck, dtype=torch.float64, device=logits.device)[:, None]
        probabilities = (logits / manner.temperature).softmax(-1)
        tokens = _sampled(probabilities, manner, drawn)
        if manner.best is not None:
            tokens = torch.where(manner.best, logits.argmax(-1), tokens)
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


def _sampled(probabilities: torch.Tensor, manner: Manner, drawn: torch.Tensor) -> torch.Tensor:
    """Tokens [R], each row in its own way; `drawn` is [R, 1]."""
    if manner.whole is None:
        return _nucleus(probabilities, manner.top_p, drawn)
    if manner.cut is None:
        return _anywhere(probabilities, drawn)
    tokens = drawn.new_empty(len(drawn), dtype=torch.long)
    tokens[manner.whole] = _anywhere(probabilities[manner.whole], drawn[manner.whole])
    cut = manner.cut
    tokens[cut] = _nucleus(probabilities[cut], manner.top_p[cut], drawn[cut])
    return tokens


def _anywhere(probabilities: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Of the whole vocabulary, in which nothing has to be sorted."""
    cumulative = probabilities.double().cumsum(-1)
    place = torch.searchsorted(cumulative, drawn * cumulative[:, -1:], right=True)
    return place[:, 0].clamp_max(probabilities.shape[-1] - 1)


def _nucleus(probabilities: torch.Tensor, top_p: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Of a large vocabulary only the likeliest are sorted, where they are enough."""
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
    # float64: the last token's cumulative weight must not fall below the drawn number
    cumulative = probabilities.double().cumsum(-1)
    last = ((cumulative - probabilities) < top_p[:, None]).sum(-1, keepdim=True) - 1  # [R, 1]
    wanted = drawn * cumulative.gather(-1, last)
    place = torch.searchsorted(cumulative, wanted, right=True)
    return order.gather(-1, torch.minimum(place, last))[:, 0]
