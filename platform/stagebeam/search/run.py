"""One question in, one trace out: picks the method, reports each decision, keeps the account."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from stagebeam.inference.types import Generator, Judge, Prompt
from stagebeam.search.best_of_n import best_of_n
from stagebeam.search.greedy import greedy
from stagebeam.search.majority import majority
from stagebeam.search.outcome import total_usage, usage_trace, winner_of
from stagebeam.search.seeds import image_digest, question_key
from stagebeam.search.settings import Method, SearchSettings
from stagebeam.search.stage_beam import stage_beam
from stagebeam.search.trace import MessageTrace, StageTrace, Trace
from stagebeam.stages import find_tags, parse

MethodFn = Callable[
    [Prompt, Generator, Judge | None, SearchSettings], AsyncGenerator[StageTrace, None]
]
OnStage = Callable[[StageTrace], Awaitable[None]]

METHODS: dict[Method, MethodFn] = {
    "greedy": greedy,
    "majority": majority,
    "best_of_n": best_of_n,
    "stage_beam": stage_beam,
}


def check_prompt(prompt: Prompt) -> None:
    """Refuse a conversation that cannot be answered.

    Raises ValueError with one sentence if it is empty, does not end with the user's turn, or has
    a user's turn with a stage tag in it.
    """
    if not prompt.messages:
        raise ValueError("The conversation is empty.")
    if prompt.messages[-1].role != "user":
        raise ValueError(
            f"The last turn must be the user's, but it is the {prompt.messages[-1].role}'s."
        )
    for message in prompt.messages:
        tags = find_tags(message.text) if message.role == "user" else ()
        if tags:
            raise ValueError(f"A question must not contain the stage tag {tags[0]}.")


async def answer(
    prompt: Prompt,
    generator: Generator,
    judge: Judge | None,
    settings: SearchSettings,
    *,
    generator_id: str,
    judge_id: str | None,
    on_stage: OnStage | None = None,
) -> Trace:
    """Search for one answer; `on_stage` is awaited with each decision as it is made.

    The same arguments give the same trace, its id included, seconds apart. `generator_id` and
    `judge_id` are fingerprints of weights and settings. Raises ValueError for a prompt or
    settings that cannot be searched with, SearchError where generator or judge break their
    protocol; whatever these raise themselves passes through.
    """
    check_prompt(prompt)
    if settings.needs_judge and judge is None:
        raise ValueError(f"{settings.method} with {settings.n} candidates needs a judge.")
    judged_by = judge_id if settings.needs_judge else None
    started = time.perf_counter()
    stages: list[StageTrace] = []
    async with aclosing(METHODS[settings.method](prompt, generator, judge, settings)) as decisions:
        async for decided in decisions:
            stages.append(decided)
            if on_stage is not None:
                await on_stage(decided)
    text = "".join(winner_of(stage).text for stage in stages)
    parsed = parse(text)
    return Trace(
        id=_trace_id(prompt, settings, generator_id, judged_by),
        messages=tuple(MessageTrace(role=m.role, text=m.text) for m in prompt.messages),
        image_digests=tuple(image_digest(image) for image in prompt.images),
        method=settings.method,
        candidates=settings.n,
        tournament=_tournament(settings),
        temperature=settings.sampling.temperature,
        top_p=settings.sampling.top_p,
        seed=settings.seed,
        generator=generator_id,
        judge=judged_by,
        stages=tuple(stages),
        text=text,
        conclusion=parsed.conclusion,
        problems=tuple(str(problem) for problem in parsed.problems),
        usage=usage_trace(total_usage(stages), time.perf_counter() - started),
    )


def _tournament(settings: SearchSettings) -> str:
    return settings.form if settings.needs_judge else "none"


def _trace_id(
    prompt: Prompt, settings: SearchSettings, generator_id: str, judge_id: str | None
) -> str:
    """32 hex digits that follow from everything the answer follows from."""
    sampling = settings.sampling
    parts = [
        question_key(prompt),
        [settings.method, settings.n, _tournament(settings), settings.tie_margin, settings.seed],
        [sampling.temperature, sampling.top_p, sampling.max_new_tokens],
        [generator_id, judge_id],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
