"""Why a verdict fell as it did: one line that is asked for after it and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stagebeam.inference.judge_calls import write
from stagebeam.inference.together import at_once, gathered
from stagebeam.inference.types import Generator, JudgeRequest, Usage, Verdict
from stagebeam.inference.wording import OPTIONS, verdict_messages
from stagebeam.records import Message

_LONGEST = 48  # tokens


async def explain(
    generator: Generator, request: JudgeRequest, verdicts: Sequence[Verdict]
) -> tuple[tuple[str, ...], Usage]:
    """A line for each pair of the request, "" for a tie, and what the lines cost."""
    written = await gathered(
        _line(generator, request, pair, verdict)
        for pair, verdict in zip(request.pairs, verdicts, strict=True)
    )
    return tuple(line for line, _ in written), at_once(cost for _, cost in written)


async def _line(
    generator: Generator, request: JudgeRequest, pair: tuple[int, int], verdict: Verdict
) -> tuple[str, Usage]:
    if verdict.margin == 0:
        return "", Usage()
    shown = verdict_messages(request, *(request.candidates[index] for index in pair))
    chosen = OPTIONS[0] if verdict.margin > 0 else OPTIONS[1]
    messages = (
        *shown,
        Message("assistant", chosen),
        Message("user", f"Say in one short sentence why candidate {chosen} is better."),
    )
    text, cost = await write(
        generator,
        replace(request.prompt, messages=messages),
        stops=("\n",),
        max_new_tokens=_LONGEST,
    )
    lines = text.split("\n")
    return lines[0].strip(), cost
