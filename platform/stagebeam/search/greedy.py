"""One answer at temperature 0, in one call: what every search is compared with."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from stagebeam.inference.types import Generator, Judge, Prompt
from stagebeam.search.outcome import Outcome, record
from stagebeam.search.propose import propose
from stagebeam.search.seeds import question_key
from stagebeam.search.settings import SearchSettings
from stagebeam.search.trace import StageTrace


async def greedy(
    prompt: Prompt, generator: Generator, judge: Judge | None, settings: SearchSettings
) -> AsyncGenerator[StageTrace, None]:
    """Yields the one whole answer. The judge is not asked."""
    proposal = await propose(generator, prompt, settings, question_key(prompt), stage=None)
    yield record(None, proposal, Outcome(winner=0))
