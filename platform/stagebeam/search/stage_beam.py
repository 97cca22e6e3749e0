"""Stage-level beam search (LLaVA-CoT, arXiv 2411.10440, section 3.3).

For each stage N candidates continue the text chosen so far, a tournament picks one, and its text
is appended exactly as it was generated, so that a cached prefix is found again.
"""

from __future__ import annotations

from stagebeam.search.contest import contest
from stagebeam.search.greedy import finish
from stagebeam.search.limits import OutOfBudget
from stagebeam.search.state import Search
from stagebeam.stages import STAGES


async def stage_beam(search: Search) -> None:
    """Decides each stage in turn; the judge may be None where every N is 1.

    A winner that was cut at the length limit, or that ended its turn, is the last: nothing can
    sensibly follow it. What a limit of the answer leaves undone is finished greedily.
    """
    prefix = ""
    for stage in STAGES:
        n = search.settings.n_of(stage.value)
        try:
            decided = await contest(search, search.spot(stage, prefix), n)
        except OutOfBudget:
            return await finish(search, prefix)
        prefix += decided.winner.text
        if decided.cut:
            return await finish(search, prefix)
        if decided.winner.finish != "stop":
            return
