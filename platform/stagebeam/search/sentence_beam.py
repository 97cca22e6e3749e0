"""Sentence-level beam search: the baseline of arXiv 2411.10440, section 3.3.

N continuations of one sentence each, a tournament, the winner extended, until the answer is whole.
"""

from __future__ import annotations

from stagebeam.search.contest import contest
from stagebeam.search.greedy import finish
from stagebeam.search.limits import OutOfBudget
from stagebeam.search.state import Search
from stagebeam.stages import Stage

MAX_SENTENCES = 64  # then the rest is finished greedily


async def sentence_beam(search: Search) -> None:
    """Decides sentence after sentence; the judge may be None where N is 1.

    The answer is whole when its conclusion is closed or the model ends its turn. The sentences
    together have at most `max_new_tokens`.
    """
    settings, prefix, left = search.settings, "", search.settings.max_new_tokens
    for number in range(MAX_SENTENCES):
        try:
            decided = await contest(search, search.sentence(number, prefix, left), settings.n)
        except OutOfBudget:
            break
        winner = decided.winner
        prefix, left = prefix + winner.text, left - winner.tokens
        whole = winner.finish == "end" or prefix.endswith(Stage.CONCLUSION.close_tag)
        if whole or (not decided.cut and (winner.finish == "length" or left < 1)):
            return
        if decided.cut:
            break
    await finish(search, prefix)
