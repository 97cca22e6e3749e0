"""Self-consistency (Wang et al., arXiv 2203.11171): N whole answers vote with their conclusions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from statistics import fmean

from stagebeam.inference.types import Candidate, Generator, Judge, Prompt
from stagebeam.search.outcome import Outcome, has_tags, record
from stagebeam.search.propose import propose
from stagebeam.search.seeds import question_key
from stagebeam.search.settings import SearchSettings
from stagebeam.search.trace import StageTrace
from stagebeam.search.votes import ballots


async def majority(
    prompt: Prompt, generator: Generator, judge: Judge | None, settings: SearchSettings
) -> AsyncGenerator[StageTrace, None]:
    """Yields the vote over N whole answers. The judge is not asked."""
    proposal = await propose(generator, prompt, settings, question_key(prompt), stage=None)
    yield record(None, proposal, Outcome(winner=elect(proposal.candidates)))


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
    return max(largest, key=lambda c: (has_tags(None, c.text), c.mean_logprob, -c.index)).index
