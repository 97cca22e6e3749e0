"""Candidates of one spot compared by the judge: who plays, what was asked, how ties break.

docs/search.md has the rules that settle what the judge does not.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from stagebeam.inference.types import Candidate, Judgement, JudgeRequest, Usage, Verdict
from stagebeam.search.events import CandidatesScored, MatchDecided
from stagebeam.search.state import Search, SearchError, Spot
from stagebeam.search.trace import DecidedBy, MatchTrace
from stagebeam.search.votes import ballots, support

RULE_ROUND = 0  # matches that no judge saw; judged rounds count from 1

Pair = tuple[int, int]
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Heard:
    """What the judge said about a pair of texts."""

    verdict: Verdict
    explanation: str | None

    @property
    def turned(self) -> _Heard:
        """The same from the other text's side, where it was asked in the other order."""
        return _Heard(Verdict(-self.verdict.backward, -self.verdict.forward), self.explanation)


@dataclass(slots=True)
class Arena:
    """One tournament under way. A pair of texts is asked about once."""

    search: Search
    spot: Spot
    players: dict[int, Candidate] = field(default_factory=dict)  # distinct, with their tags
    votes: dict[int, int] = field(default_factory=dict)
    merged_into: dict[int, int] = field(default_factory=dict)  # copy -> first of its kind
    usage: Usage = field(default_factory=Usage)
    rounds: int = 0
    gone: bool = False  # the judge failed, and is not asked again here
    overlapping: int = 0  # passes of the longest call that ran beside decoding
    _heard: dict[tuple[str, str], _Heard] = field(default_factory=dict)
    _scores: dict[str, float] = field(default_factory=dict)

    def seat(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Let these play. Returns the distinct ones without their tags, which do not."""
        first: dict[str, int] = {}
        for candidate in candidates:
            first.setdefault(candidate.text, candidate.index)
        self.merged_into = {c.index: first[c.text] for c in candidates if first[c.text] != c.index}
        distinct = [c for c in candidates if c.index not in self.merged_into]
        self.players = {c.index: c for c in distinct if self.spot.valid(c)}
        counted = [c for c in candidates if self.merged_into.get(c.index, c.index) in self.players]
        if self.spot.name in ("ANSWER", "CONCLUSION"):  # copies, and those who conclude the same
            self.votes = support(ballots(tuple(counted)))
        else:
            self.votes = dict(Counter(self.merged_into.get(c.index, c.index) for c in counted))
        return [c for c in distinct if c.index not in self.players]

    async def rule_out(self, losers: Sequence[Candidate]) -> None:
        """Record that these lost by rule, unseen by the judge."""
        for loser in losers:
            winner = min(self.players)
            nothing = _Heard(Verdict(0.0, 0.0), None)
            match = _match(RULE_ROUND, (winner, loser.index), nothing, winner, "rule")
            await self.search.emit(MatchDecided(self.spot.visit, match))

    async def play_round(self, pairs: Sequence[Pair]) -> list[MatchTrace]:
        """Settle all `pairs` of indices, with one call to the judge for those not yet asked."""
        await self.ask([pair for pair in pairs if self.heard(pair) is None])
        self.rounds += 1
        played = [self._settle(pair) for pair in pairs]
        for match in played:
            await self.search.emit(MatchDecided(self.spot.visit, match))
        return played

    async def play_heard(self) -> None:
        """Settle the pairs that the judge was asked about, and no others."""
        pairs = combinations(sorted(self.players), 2)
        await self.play_round([pair for pair in pairs if self.heard(pair) is not None])

    async def ask(self, pairs: Sequence[Pair], *, beside_decoding: bool = False) -> None:
        """Hear the judge about `pairs`. A call that fails or comes too late leaves them open."""
        if not pairs or self.gone:
            return
        judgement = await self._call(pairs)
        passes = 1 if judgement is None else max(1, judgement.usage.sequential_passes)
        usage = Usage() if judgement is None else judgement.usage
        if beside_decoding:
            self.overlapping, passes = max(self.overlapping, passes), 0
        self.usage += replace(usage, sequential_passes=passes, judge_calls=1)
        if judgement is not None:
            self._keep(pairs, judgement)

    async def _call(self, pairs: Sequence[Pair]) -> Judgement | None:
        judge = self.search.judge
        assert judge is not None, "more than one candidate needs a judge"
        seats = self._seats(pairs)
        request = JudgeRequest(
            prompt=self.search.prompt,
            stage=self.spot.stage,
            prefix=self.spot.prefix,
            candidates=tuple(self.players[index].text for index in seats),
            pairs=tuple((seats[a], seats[b]) for a, b in pairs),
            explain=self.search.settings.explain,
        )
        judgement = await judged(self.search, request)
        self.gone = self.gone or judgement is None
        return judgement

    def _seats(self, pairs: Sequence[Pair]) -> dict[int, int]:
        """Index -> place in the request, of those who play in these pairs alone."""
        return {index: seat for seat, index in enumerate(sorted({i for p in pairs for i in p}))}

    def _keep(self, pairs: Sequence[Pair], judgement: Judgement) -> None:
        verdicts, said = judgement.verdicts, judgement.explanations or (None,) * len(pairs)
        for what, given in (("verdicts", len(verdicts)), ("explanations", len(said))):
            if given != len(pairs):
                raise SearchError(f"The judge returned {given} {what} for {len(pairs)} pairs.")
        for (a, b), verdict, explanation in zip(pairs, verdicts, said, strict=True):
            if not math.isfinite(verdict.margin):
                raise SearchError(
                    f"The judge's margin for {self.spot.name} {a} against {b} is not finite."
                )
            texts = self.players[a].text, self.players[b].text
            self._heard[texts] = _Heard(verdict, explanation)
        if judgement.scores:
            texts_asked = [self.players[index].text for index in self._seats(pairs)]
            self._scores.update(zip(texts_asked, judgement.scores, strict=False))

    def heard(self, pair: Pair) -> _Heard | None:
        """What was said about a pair, in whichever order it was asked."""
        a, b = (self.players[index].text for index in pair)
        if (a, b) in self._heard:
            return self._heard[a, b]
        turned = self._heard.get((b, a))
        return None if turned is None else turned.turned

    def _settle(self, pair: Pair) -> MatchTrace:
        heard = self.heard(pair)
        if heard is None:
            self.usage += Usage(judge_failures=1)
            heard = _Heard(Verdict(0.0, 0.0), None)
        margin, (a, b) = heard.verdict.margin, pair
        if abs(margin) > self.search.settings.tie_margin:
            return _match(self.rounds, pair, heard, a if margin > 0 else b, "margin")
        by: DecidedBy = "logprob" if self.votes[a] == self.votes[b] else "majority"
        return _match(self.rounds, pair, heard, max(pair, key=self.standing), by)

    def standing(self, index: int) -> tuple[int, float, int]:
        """What breaks ties: votes, then mean log-probability, then the lower index."""
        return self.votes[index], self.players[index].mean_logprob, -index

    def runaway(self, matches: Sequence[MatchTrace]) -> int | None:
        """The winner of the widest match, if its margin is over `early_stop_margin`."""
        wide = self.search.settings.early_stop_margin
        widest = max(matches, key=lambda m: (abs(m.margin), self.standing(m.winner)), default=None)
        if wide is None or widest is None or abs(widest.margin) <= wide:
            return None
        return widest.winner

    async def tell_scores(self) -> None:
        """The pointwise scores that the judge gave, by index, if it gave any."""
        known = {i: self._scores[c.text] for i, c in self.players.items() if c.text in self._scores}
        if known:
            await self.search.emit(CandidatesScored(self.spot.visit, known))


async def judged(search: Search, request: JudgeRequest) -> Judgement | None:
    """One call to the judge; None if it failed or time ran out.

    A question that the judge refuses (ValueError) is the user's to know, and passes through.
    """
    assert search.judge is not None
    clock = asyncio.timeout(search.allowance.left())
    try:
        async with clock:
            return await search.judge.compare(request)
    except ValueError:
        raise
    except Exception as error:
        if clock.expired():
            await search.limit("seconds")
        else:
            _logger.warning("A judge call failed: %s: %s", type(error).__name__, error)
        return None


def _match(
    number: int, pair: Pair, heard: _Heard, winner: int, decided_by: DecidedBy
) -> MatchTrace:
    return MatchTrace(
        round=number,
        a=pair[0],
        b=pair[1],
        forward=heard.verdict.forward,
        backward=heard.verdict.backward,
        margin=heard.verdict.margin,
        winner=winner,
        decided_by=decided_by,
        explanation=heard.explanation,
    )
