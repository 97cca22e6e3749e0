"""N whole answers, compared as whole answers: the judge's baseline without stages."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from stagebeam.inference.types import Generator, Judge, Prompt
from stagebeam.search.contest import contest
from stagebeam.search.seeds import question_key
from stagebeam.search.settings import SearchSettings
from stagebeam.search.trace import StageTrace


async def best_of_n(
    prompt: Prompt, generator: Generator, judge: Judge | None, settings: SearchSettings
) -> AsyncGenerator[StageTrace, None]:
    """Yields the one decision. The judge may be None where N is 1."""
    key = question_key(prompt)
    yield await contest(prompt, generator, judge, settings, key, stage=None)
