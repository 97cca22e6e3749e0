"""Self-consistency (Wang et al., arXiv 2203.11171): N whole answers vote with their conclusions."""

from __future__ import annotations

from statistics import fmean

from stagebeam.inference.types import Candidate
from stagebeam.search.events import StageOpened
from stagebeam.search.greedy import finish
from stagebeam.search.propose import Draw
from stagebeam.search.state import Search
from stagebeam.search.votes import ballots
from stagebeam.stages import parse


async def majority(search: Search) -> None:
    """Decides the vote over N whole answers. The judge is not asked."""
    spot, n = search.spot(None), search.settings.n
    await search.emit(StageOpened(spot.visit, spot.name, n))
    draw = Draw(search, spot)
    await draw.more(range(n))
    winner = await draw.decide(elect(draw.candidates))
    if winner.index in draw.cut:
        await finish(search, winner.text)


def elect(candidates: tuple[Candidate, ...]) -> int:
    """Index of the answer that speaks for the most common conclusion.

    Every whole conclusion is a vote; without any, all candidates are one group. Groups of one
    size are told apart by their mean log-probability a token. In the group, an answer with all
    its tags comes first, then the likelier one, then the lower index.
    """
    votes = ballots(candidates)
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        if not votes or candidate.index in votes:
            groups.setdefault(votes.get(candidate.index, ""), []).append(candidate)
    largest = max(groups.values(), key=lambda g: (len(g), fmean(c.mean_logprob for c in g)))
    return max(largest, key=lambda c: (parse(c.text).valid, c.mean_logprob, -c.index)).index
