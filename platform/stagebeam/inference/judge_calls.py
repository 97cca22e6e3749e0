"""How a judge has something written by a generator."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from stagebeam.inference.types import (
    Candidate,
    GenerateRequest,
    Generator,
    Prompt,
    Sampling,
    Usage,
)


class OwnedGenerator(Generator, Protocol):
    """A generator and what runs it."""

    fingerprint: str  # of all that decides an answer

    async def check(self) -> None:
        """Raises where it does not work any more, and would not by itself."""

    def close(self) -> None: ...


async def write(
    generator: Generator, prompt: Prompt, *, stops: tuple[str, ...], max_new_tokens: int
) -> tuple[str, Usage]:
    """One greedy text, with the stop that ended it, and its cost: all tokens are the judge's."""
    sampling = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=max_new_tokens)
    text, usage = "", Usage()
    async for item in generator.propose(GenerateRequest(prompt, "", stops, (0,), sampling)):
        if isinstance(item, Candidate):
            text = item.text
        else:
            usage += item
    tokens = usage.prefill_tokens + usage.decode_tokens
    return text, replace(usage, prefill_tokens=0, decode_tokens=0, judge_tokens=tokens)
