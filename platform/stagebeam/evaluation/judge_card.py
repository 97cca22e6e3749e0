"""What a judge is worth: its verdicts on pairs of which one is known to be the better.

Measured before any claim that search helps: with a judge near chance, more candidates are worse.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from stagebeam.evaluation.results import JudgeCard, PairShare
from stagebeam.evaluation.statistics import wilson
from stagebeam.inference.types import Judge, JudgeRequest, Prompt, Usage, Verdict
from stagebeam.stages import Stage

WHOLE_ANSWER = "ANSWER"  # name of "no stage", as in traces


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
class _Judged:
    """A pair's verdict, turned so that positive means the better candidate."""

    pair: JudgePair
    verdict: Verdict
    tie: bool

    @property
    def margin(self) -> float:
        return -self.verdict.margin if self.pair.better else self.verdict.margin

    @property
    def right(self) -> bool:
        return not self.tie and self.margin > 0


async def judge_card(
    judge: Judge, pairs: Sequence[JudgePair], *, concurrency: int = 16, tie_margin: float = 1e-6
) -> JudgeCard:
    """Ask `judge` about every pair, at most `concurrency` at a time.

    Both orders come from the verdict: `forward` was asked as (first, second), `backward` as
    (second, first). A margin within `tie_margin` (log-odds) is a tie, and a tie is not right.

    Raises ValueError if there are no pairs; an error of the judge is passed on.
    """
    if not pairs:
        raise ValueError("A judge card needs at least one pair with a known answer.")
    slots = asyncio.Semaphore(concurrency)
    started = time.perf_counter()

    async def ask(pair: JudgePair) -> tuple[_Judged, Usage]:
        async with slots:
            judgement = await judge.compare(
                JudgeRequest(pair.prompt, pair.stage, pair.prefix, pair.candidates, ((0, 1),))
            )
        (verdict,) = judgement.verdicts
        return _Judged(pair, verdict, abs(verdict.margin) <= tie_margin), judgement.usage

    answers = await asyncio.gather(*map(ask, pairs))
    judged = [one for one, _ in answers]
    return JudgeCard(
        **_share(judged).model_dump(),
        ties=sum(one.tie for one in judged),
        swap_consistency=sum(_consistent(one.verdict) for one in judged) / len(judged),
        mean_margin=sum(one.margin for one in judged) / len(judged),
        first_position_share=_first_position_share(judged),
        by_stage=_grouped(judged, lambda pair: pair.stage or WHOLE_ANSWER),
        by_category=_grouped(judged, lambda pair: pair.category),
        judge_tokens=sum(usage.judge_tokens for _, usage in answers) / len(judged),
        seconds=time.perf_counter() - started,
    )


def _consistent(verdict: Verdict) -> bool:
    return verdict.forward * verdict.backward > 0


def _first_position_share(judged: Sequence[_Judged]) -> float | None:
    """Each pair was shown twice: in `forward` the first shown is a, in `backward` it is b."""
    shown = [s for one in judged for s in (one.verdict.forward, -one.verdict.backward) if s]
    return sum(s > 0 for s in shown) / len(shown) if shown else None


def _share(judged: Sequence[_Judged]) -> PairShare:
    right = sum(one.right for one in judged)
    return PairShare(
        accuracy=right / len(judged),
        interval=wilson(right, len(judged)),
        pairs=len(judged),
        correct=right,
    )


def _grouped(
    judged: Sequence[_Judged], key: Callable[[JudgePair], str | None]
) -> dict[str, PairShare]:
    groups: dict[str, list[_Judged]] = {}
    for one in judged:
        name = key(one.pair)
        if name is not None:
            groups.setdefault(str(name), []).append(one)
    return {name: _share(group) for name, group in groups.items()}
