"""Guessing what rows write next, so that one pass checks several tokens of each.

A row's token follows from its logits and its next random number, and among equal logits it is a
step function of that number (`sampling.draw_tokens`). So for each context, the last few tokens, we
keep which numbers brought which tokens, whoever drew them: candidates of a stage are worded alike,
stages repeat one another and the question, answers share their form. A row's guess is what the
number nearest to its own has brought. Numbers are known ahead, so guesses make chains.

How many of them go through the model is weighed, not fixed. It is learnt how often guesses of each
kind come true, and a guess takes part while its chance is above what the pass has to show for each
token's worth of its cost; the pass has none where it would show less than without. The first guess
of a row is checked even where it is not taken up, so that chances recover without probes.

A guess changes no text: it is kept only where it is what the row draws (after Leviathan et al.,
"Fast Inference from Transformers via Speculative Decoding"; drafts from n-grams as in prompt
lookup; here both sides share the random number, so nothing has to be resampled).
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import eq

_ORDERS = (3, 2, 1)  # tokens of a context, the longest that is known first
LOOK_BACK = _ORDERS[0]
_DRAWS = 8  # that are kept of a context
_CONTEXTS = 1 << 15  # some 10 MB; the oldest go first
_UNKNOWN = {3: 0.5, 2: 0.4, 1: 0.2}  # the chance of a guess by its context, before any was checked
_WINDOW = 64  # checks over which a chance is learnt
_SURCHARGE = 0.3  # of a pass with guesses, of its price: what lays them out, gathers, draws
_MOST = 256  # tokens of a pass with guesses: each has logits over the whole vocabulary

Context = tuple[int, ...]
Kind = tuple[int, bool]  # the context's length; whether the nearest draws on both sides agree


@dataclass(frozen=True, slots=True)
class Ahead:
    """A row before a pass: its last tokens, and the numbers of the next ones. It can take a token
    less than it has numbers as guesses."""

    tail: Sequence[int]
    numbers: Sequence[float]


@dataclass(slots=True)
class Draft:
    """What a row may write next. `tokens` go through the model; `guesses` has them and what was
    thought of behind them, with their kinds."""

    guesses: list[tuple[int, Kind]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


class Drafter:
    """What an engine has seen drawn; used by one thread."""

    def __init__(self, longest: int, price: float) -> None:
        """At most `longest` guesses of a row; 0 makes none. A pass costs as much as `price` tokens
        before it has any."""
        self._longest, self._price = longest, price
        self._drawn: dict[Context, list[tuple[float, int]]] = {}  # sorted
        self._chances: dict[Kind, float] = {}
        self.drafted = self.accepted = 0  # guesses that went through the model, and came true

    def room(self, left: int) -> int:
        """Guesses for a row that may still write `left` tokens, at least one."""
        return min(self._longest, left - 1)

    def read(self, ids: Sequence[int]) -> None:
        """Tokens that nobody drew, as a prompt's."""
        if self._longest:
            for at in range(1, len(ids)):
                self._keep(ids[max(0, at - LOOK_BACK) : at], (0.5, ids[at]))

    def draft(self, rows: Sequence[Ahead]) -> list[Draft]:
        """For each row of a pass."""
        drafts = [Draft() for _ in rows]
        if not self._longest:
            return drafts
        tokens = kept = float(len(rows))  # of the pass, and those it may be expected to bring
        price = self._price * (1 + _SURCHARGE)
        least = kept / (price + tokens)  # grows with each guess that is worth its place
        offers: list[tuple[float, Draft, int]] = []
        for row, draft in zip(rows, drafts, strict=True):
            tail, chance = list(row.tail), 1.0
            for number in row.numbers[:-1]:
                guess = self._guess(tail, number)
                if guess is None:
                    break
                draft.guesses.append(guess)
                chance *= self._chance(guess[1])
                if chance <= least:
                    break
                offers.append((chance, draft, guess[0]))
                tail.append(guess[0])
        offers.sort(key=lambda offer: -offer[0])  # of one row, in its order
        taken = 0
        for chance, _, _ in offers:
            if chance * (price + tokens) <= kept or tokens >= _MOST:
                break
            taken, tokens, kept = taken + 1, tokens + 1, kept + chance
        if kept / (price + tokens) > len(rows) / (self._price + len(rows)):
            for _, draft, token in offers[:taken]:
                draft.tokens.append(token)
        return drafts

    def learn(self, row: Ahead, draft: Draft, written: Sequence[int]) -> None:
        """What the row has drawn, with its first numbers."""
        if not self._longest:
            return
        self.drafted += len(draft.tokens)
        self.accepted += sum(map(eq, draft.tokens, written))
        for (token, kind), true in zip(draft.guesses, written, strict=False):
            chance = self._chance(kind)
            self._chances[kind] = chance + ((token == true) - chance) / _WINDOW
            if token != true:
                break
        tail = list(row.tail)
        for number, token in zip(row.numbers, written, strict=False):
            self._keep(tail, (number, token))
            tail.append(token)

    def _chance(self, kind: Kind) -> float:
        return self._chances.get(kind, _UNKNOWN[kind[0]])

    def _guess(self, tail: Sequence[int], number: float) -> tuple[int, Kind] | None:
        for order in _ORDERS:
            drawn = self._drawn.get(tuple(tail[-order:]))
            if drawn is None:
                continue
            at = bisect(drawn, (number,))
            if at == 0 or at == len(drawn):
                return drawn[at - 1 if at else 0][1], (order, False)
            (below, first), (above, second) = drawn[at - 1 : at + 1]
            nearest = first if number - below < above - number else second
            return nearest, (order, first == second)
        return None

    def _keep(self, tail: Sequence[int], draw: tuple[float, int]) -> None:
        for order in _ORDERS:
            context = tuple(tail[-order:])
            drawn = self._drawn.get(context)
            if drawn is None:
                if len(self._drawn) >= _CONTEXTS:
                    del self._drawn[next(iter(self._drawn))]
                self._drawn[context] = [draw]
                continue
            at = bisect(drawn, draw[:1])
            if at < len(drawn) and drawn[at][0] == draw[0]:
                drawn[at] = draw
                continue
            drawn.insert(at, draw)
            if len(drawn) > _DRAWS:  # in place of the nearest
                after = at + 1 < len(drawn) and (
                    at == 0 or drawn[at + 1][0] - draw[0] < draw[0] - drawn[at - 1][0]
                )
                del drawn[at + 1 if after else at - 1]
