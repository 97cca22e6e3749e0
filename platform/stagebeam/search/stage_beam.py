"""Stage-level beam search (LLaVA-CoT, arXiv 2411.10440, section 3.3).

For each stage N candidates continue the text chosen so far, a tournament picks one, and its text
is appended exactly as it was generated, so that a cached prefix is found again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from stagebeam.inference.types import Generator, Judge, Prompt
from stagebeam.search.contest import contest
from stagebeam.search.outcome import winner_of
from stagebeam.search.seeds import question_key
from stagebeam.search.settings import SearchSettings
from stagebeam.search.trace import StageTrace
from stagebeam.stages import STAGES


async def stage_beam(
    prompt: Prompt, generator: Generator, judge: Judge | None, settings: SearchSettings
) -> AsyncGenerator[StageTrace, None]:
    """Yields each stage as it is decided; the judge may be None where N is 1.

    A winner that was cut at the length limit, or that ended its turn, is the last: nothing can
    sensibly follow it.
    """
    key = question_key(prompt)
    prefix = ""
    for stage in STAGES:
        decided = await contest(prompt, generator, judge, settings, key, stage=stage, prefix=prefix)
        yield decided
        winner = winner_of(decided)
        if winner.finish != "stop":
            return
        prefix += winner.text
