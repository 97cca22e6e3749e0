"""Who goes on: candidates compared in pairs by a judge, one judge call a round.

Forms: `chain` is the paper's (arXiv 2411.10440, section 3.3: random pairs, the winner meets the
next, N-1 matches one after another), `bracket` a knock-out in ceil(log2 N) rounds, `round_robin`
all pairs in one round. docs/search.md has the rules that settle what the judge does not.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from stagebeam.inference.types import Candidate, Judge, JudgeRequest, Prompt, Usage, Verdict
from stagebeam.search.outcome import Outcome, has_tags
from stagebeam.search.propose import SearchError, stage_name
from stagebeam.search.settings import Form
from stagebeam.search.trace import DecidedBy, MatchTrace
from stagebeam.search.votes import ballots, support
from stagebeam.stages import Stage

RULE_ROUND = 0  # matches that no judge saw; judged rounds count from 1

Pair = tuple[int, int]


@dataclass(slots=True)
class _Contest:
    """One tournament under way: who plays, how ties break, and what has been played."""

    prompt: Prompt
    stage: Stage | None
    prefix: str
    judge: Judge | None
    tie_margin: float
    players: dict[int, Candidate]  # distinct, with their tags, by index
    votes: dict[int, int]
    matches: list[MatchTrace] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    rounds: int = 0

    async def play_round(self, pairs: Sequence[Pair]) -> list[MatchTrace]:
        """Ask the judge once about all `pairs` of indices, and settle each of them."""
        assert self.judge is not None, "more than one candidate needs a judge"
        seats = {index: seat for seat, index in enumerate(sorted({i for p in pairs for i in p}))}
        request = JudgeRequest(
            prompt=self.prompt,
            stage=self.stage,
            prefix=self.prefix,
            candidates=tuple(self.players[index].text for index in seats),
            pairs=tuple((seats[a], seats[b]) for a, b in pairs),
        )
        judgement = await self.judge.compare(request)
        if len(judgement.verdicts) != len(pairs):
            raise SearchError(
                f"The judge returned {len(judgement.verdicts)} verdicts for {len(pairs)} pairs."
            )
        # A round makes the answer wait at least once; a judge that decodes reports more.
        passes = max(1, judgement.usage.sequential_passes)
        self.usage += replace(judgement.usage, sequential_passes=passes, judge_calls=1)
        self.rounds += 1
        played = [self._settle(p, v) for p, v in zip(pairs, judgement.verdicts, strict=True)]
        self.matches += played
        return played

    def _settle(self, pair: Pair, verdict: Verdict) -> MatchTrace:
        a, b = pair
        if not math.isfinite(verdict.margin):
            raise SearchError(
                f"The judge's margin for {stage_name(self.stage)} {a} against {b} is not finite."
            )
        decided_by: DecidedBy = "margin"
        if abs(verdict.margin) > self.tie_margin:
            winner = a if verdict.margin > 0 else b
        else:
            decided_by = "logprob" if self.votes[a] == self.votes[b] else "majority"
            winner = max(pair, key=self.standing)
        return MatchTrace(
            round=self.rounds,
            a=a,
            b=b,
            forward=verdict.forward,
            backward=verdict.backward,
            margin=verdict.margin,
            winner=winner,
            decided_by=decided_by,
        )

    def standing(self, index: int) -> tuple[int, float, int]:
        """What breaks ties: votes, then mean log-probability, then the lower index."""
        return self.votes[index], self.players[index].mean_logprob, -index


async def play(
    candidates: tuple[Candidate, ...],
    *,
    prompt: Prompt,
    stage: Stage | None,
    prefix: str,
    judge: Judge | None,
    form: Form,
    tie_margin: float,
    seed: int,
) -> Outcome:
    """Choose one of `candidates` (continuations of `prefix`; whole answers if `stage` is None).

    `seed` draws the pairs of `chain` and `bracket`. The judge may be None where at most one
    distinct candidate has its tags. Raises SearchError if the judge breaks its protocol.
    """
    started = time.perf_counter()
    merged_into = _merge(candidates)
    distinct = [c for c in candidates if c.index not in merged_into]
    players = {c.index: c for c in distinct if has_tags(stage, c.text)}
    if not players:
        best = max(distinct, key=lambda c: (c.mean_logprob, -c.index))
        return Outcome(best.index, (), merged_into)
    votes = _votes(candidates, merged_into, players, stage)
    contest = _Contest(prompt, stage, prefix, judge, tie_margin, players, votes)
    contest.matches += [_lost_by_rule(min(players), c) for c in distinct if c.index not in players]
    order = list(players)
    if len(order) == 1:
        winner = order[0]
    else:
        random.Random(seed).shuffle(order)
        winner = await _FORMS[form](contest, order)
    seconds = time.perf_counter() - started
    return Outcome(winner, tuple(contest.matches), merged_into, contest.usage, seconds)


def _merge(candidates: tuple[Candidate, ...]) -> dict[int, int]:
    """Each copy's index -> the index of the first candidate with that very text."""
    first: dict[str, int] = {}
    for candidate in candidates:
        first.setdefault(candidate.text, candidate.index)
    return {c.index: first[c.text] for c in candidates if first[c.text] != c.index}


def _votes(
    candidates: tuple[Candidate, ...],
    merged_into: dict[int, int],
    players: dict[int, Candidate],
    stage: Stage | None,
) -> dict[int, int]:
    """Votes of each player: its copies, or where conclusions compete, those who agree with it."""
    counted = tuple(c for c in candidates if merged_into.get(c.index, c.index) in players)
    if stage in (None, Stage.CONCLUSION):
        return support(ballots(counted))
    return dict(Counter(merged_into.get(c.index, c.index) for c in counted))


def _lost_by_rule(winner: int, loser: Candidate) -> MatchTrace:
    return MatchTrace(
        round=RULE_ROUND,
        a=winner,
        b=loser.index,
        forward=0.0,
        backward=0.0,
        margin=0.0,
        winner=winner,
        decided_by="rule",
    )


async def _chain(contest: _Contest, order: list[int]) -> int:
    champion = order[0]
    for challenger in order[1:]:
        (match,) = await contest.play_round([(champion, challenger)])
        champion = match.winner
    return champion


async def _bracket(contest: _Contest, order: list[int]) -> int:
    while len(order) > 1:
        bye = order[-1:] if len(order) % 2 else []
        played = await contest.play_round(list(zip(order[::2], order[1::2], strict=False)))
        order = [match.winner for match in played] + bye
    return order[0]


async def _round_robin(contest: _Contest, order: list[int]) -> int:
    wins: Counter[int] = Counter()
    margins = dict.fromkeys(order, 0.0)
    for match in await contest.play_round(list(combinations(sorted(order), 2))):
        wins[match.winner] += 1
        margins[match.a] += match.margin
        margins[match.b] -= match.margin
    return max(order, key=lambda i: (wins[i], margins[i], contest.standing(i)))


_FORMS: dict[Form, Callable[[_Contest, list[int]], Awaitable[int]]] = {
    "chain": _chain,
    "bracket": _bracket,
    "round_robin": _round_robin,
}
