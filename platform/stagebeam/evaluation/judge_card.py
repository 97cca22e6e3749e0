"""What a judge is worth: its verdicts on pairs of which one is known to be the better.

Measured before any claim that search helps: with a judge near chance, more candidates are worse.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp
from statistics import fmean
from typing import Literal

from stagebeam.evaluation.results import CalibrationBin, JudgeCard, PairShare
from stagebeam.evaluation.statistics import wilson
from stagebeam.inference.types import Judge, JudgeRequest, Prompt, Usage, Verdict
from stagebeam.stages import Stage

WHOLE_ANSWER = "ANSWER"  # name of "no stage", as in traces
TIE_MARGIN = 1e-6  # log-odds
BINS, PAIRS_IN_BIN = 10, 20  # of the calibration: at most so many, with at least so many pairs


@dataclass(frozen=True, slots=True)
class JudgePair:
    """Two candidates for one place; `better` is the index of the one known to be better."""

    prompt: Prompt
    stage: Stage | None
    prefix: str
    candidates: tuple[str, str]
    better: Literal[0, 1]
    category: str | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """A pair and its verdict: `forward` was asked as (first, second), `backward` as (second,
    first). A margin within `tie_margin` (log-odds) is a tie, and a tie is not right."""

    pair: JudgePair
    verdict: Verdict
    tie_margin: float = TIE_MARGIN

    @property
    def tie(self) -> bool:
        return abs(self.verdict.margin) <= self.tie_margin

    @property
    def margin(self) -> float:
        """Positive means the better candidate."""
        return -self.verdict.margin if self.pair.better else self.verdict.margin

    @property
    def right(self) -> bool:
        return not self.tie and self.margin > 0

    @property
    def lead(self) -> int:
        """By how many characters the better candidate is the longer."""
        better = self.pair.better
        return len(self.pair.candidates[better]) - len(self.pair.candidates[1 - better])


async def judge_card(
    judge: Judge,
    pairs: Sequence[JudgePair],
    *,
    concurrency: int = 16,
    tie_margin: float = TIE_MARGIN,
) -> JudgeCard:
    """Ask `judge` about every pair, at most `concurrency` at a time.

    Raises ValueError if there are no pairs; an error of the judge is passed on.
    """
    if not pairs:
        raise ValueError("A judge card needs at least one pair with a known answer.")
    slots = asyncio.Semaphore(concurrency)
    started = time.perf_counter()

    async def ask(pair: JudgePair) -> tuple[Judged, Usage]:
        async with slots:
            judgement = await judge.compare(
                JudgeRequest(pair.prompt, pair.stage, pair.prefix, pair.candidates, ((0, 1),))
            )
        (verdict,) = judgement.verdicts
        return Judged(pair, verdict, tie_margin), judgement.usage

    answers = await asyncio.gather(*map(ask, pairs))
    tokens = fmean(usage.judge_tokens for _, usage in answers)
    return card_of([one for one, _ in answers], tokens, time.perf_counter() - started)


def card_of(judged: Sequence[Judged], judge_tokens: float, seconds: float) -> JudgeCard:
    """The card that follows from verdicts; `judge_tokens` were read for one pair, in the mean.

    Raises ValueError if there is no pair.
    """
    if not judged:
        raise ValueError("A judge card needs at least one pair with a known answer.")
    bins = _calibration([one for one in judged if not one.tie])
    uneven = [one for one in judged if one.lead and not one.tie]
    return JudgeCard(
        **_share(judged).model_dump(),
        ties=sum(one.tie for one in judged),
        swap_consistency=sum(_consistent(one.verdict) for one in judged) / len(judged),
        mean_margin=sum(one.margin for one in judged) / len(judged),
        first_position_share=_first_position_share(judged),
        by_stage=_grouped(judged, lambda pair: pair.stage or WHOLE_ANSWER),
        by_category=_grouped(judged, lambda pair: pair.category),
        longer_share=fmean(one.right == (one.lead > 0) for one in uneven) if uneven else None,
        better_longer=_share_of([one for one in judged if one.lead > 0]),
        better_shorter=_share_of([one for one in judged if one.lead < 0]),
        calibration=bins,
        calibration_error=_calibration_error(bins),
        judge_tokens=judge_tokens,
        seconds=seconds,
    )


def _calibration(decided: Sequence[Judged]) -> tuple[CalibrationBin, ...]:
    """Bins of equal number, not of equal width: a judge that sums log-probabilities has margins of
    tens of nats, which would all fall into the last of those."""
    ordered = sorted(decided, key=lambda one: abs(one.margin))
    count = max(1, min(BINS, len(ordered) // PAIRS_IN_BIN))
    edges = [len(ordered) * place // count for place in range(count + 1)]
    parts = [ordered[start:end] for start, end in pairwise(edges)]
    return tuple(_calibration_bin(part) for part in parts if part)


def _calibration_bin(part: Sequence[Judged]) -> CalibrationBin:
    sizes = [abs(one.margin) for one in part]
    return CalibrationBin(
        **_share(part).model_dump(),
        low=sizes[0],
        high=sizes[-1],
        confidence=fmean(1 / (1 + exp(-size)) for size in sizes),
    )


def _calibration_error(bins: Sequence[CalibrationBin]) -> float | None:
    """Guo et al. 2017 (arXiv 1706.04599), equation 3, on these bins."""
    if not bins:
        return None
    pairs = sum(one.pairs for one in bins)
    return sum(one.pairs * abs(one.confidence - one.accuracy) for one in bins) / pairs


def _consistent(verdict: Verdict) -> bool:
    return verdict.forward * verdict.backward > 0


def _first_position_share(judged: Sequence[Judged]) -> float | None:
    """Each pair was shown twice: in `forward` the first shown is a, in `backward` it is b."""
    shown = [s for one in judged for s in (one.verdict.forward, -one.verdict.backward) if s]
    return sum(s > 0 for s in shown) / len(shown) if shown else None


def _share_of(judged: Sequence[Judged]) -> PairShare | None:
    return _share(judged) if judged else None


def _share(judged: Sequence[Judged]) -> PairShare:
    right = sum(one.right for one in judged)
    return PairShare(
        accuracy=right / len(judged),
        interval=wilson(right, len(judged)),
        pairs=len(judged),
        correct=right,
    )


def _grouped(
    judged: Sequence[Judged], key: Callable[[JudgePair], str | None]
) -> dict[str, PairShare]:
    groups: dict[str, list[Judged]] = {}
    for one in judged:
        name = key(one.pair)
        if name is not None:
            groups.setdefault(str(name), []).append(one)
    return {name: _share(group) for name, group in groups.items()}
