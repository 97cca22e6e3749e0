"""One question in, one trace out: picks the method, tells each event, keeps the account."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial

from stagebeam.inference.types import Generator, Judge, Prompt, Usage
from stagebeam.search.best_of_n import best_of_n
from stagebeam.search.calibration import Calibration, read_calibration
from stagebeam.search.events import Answered, Event
from stagebeam.search.fold import Fold
from stagebeam.search.greedy import greedy
from stagebeam.search.limits import OutOfBudget
from stagebeam.search.majority import majority
from stagebeam.search.retrace import retrace
from stagebeam.search.seeds import image_digest, question_key
from stagebeam.search.sentence_beam import sentence_beam
from stagebeam.search.settings import Method, SearchSettings
from stagebeam.search.stage_beam import stage_beam
from stagebeam.search.state import Search, UnfitError, usage_trace
from stagebeam.search.trace import MessageTrace, StageTrace, Trace
from stagebeam.stages import parse

OnStage = Callable[[StageTrace], Awaitable[None]]

METHODS: dict[Method, Callable[[Search], Awaitable[None]]] = {
    "greedy": greedy,
    "majority": majority,
    "best_of_n": best_of_n,
    "sentence_beam": sentence_beam,
    "stage_beam": stage_beam,
    "retrace": retrace,
}


def check_prompt(prompt: Prompt) -> None:
    """Refuse a conversation that cannot be answered.

    Raises ValueError with one sentence if it is empty or does not end with the user's turn.
    """
    if not prompt.messages:
        raise ValueError("The conversation is empty.")
    if prompt.messages[-1].role != "user":
        raise ValueError(
            f"The last turn must be the user's, but it is the {prompt.messages[-1].role}'s."
        )


def calibration_of(
    settings: SearchSettings, generator_id: str, judge_id: str | None
) -> Calibration | None:
    """The cutoffs that these settings search with, None for a search that never goes back.

    Raises UnfitError with one sentence where they are missing or another model's.
    """
    if settings.method != "retrace" or settings.max_retraces == 0:
        return None
    if settings.calibration is None:
        raise UnfitError("retrace needs a calibration; make one with `stagebeam calibrate`.")
    try:
        calibration = read_calibration(settings.calibration)
        calibration.check_models(generator_id, judge_id)
    except ValueError as error:
        raise UnfitError(str(error)) from None
    return calibration


def trace_id_of(
    prompt: Prompt, settings: SearchSettings, generator_id: str, judge_id: str | None
) -> str:
    """The id that the answer's trace will have, known before there is an answer.

    Raises UnfitError where these models cannot search as the settings ask.
    """
    judged_by = judge_id if settings.needs_judge else None
    calibration = calibration_of(settings, generator_id, judged_by)
    fingerprint = None if calibration is None else calibration.fingerprint
    return _trace_id(prompt, settings, generator_id, judged_by, fingerprint)


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

    The same arguments give the same trace, its id included, seconds apart, unless `max_seconds`
    cuts it or `early_stop_margin` ends an `arrival`. `generator_id` and `judge_id` are
    fingerprints of weights and settings. Raises as `events` does.
    """
    fold = Fold()
    stream = events(
        prompt, generator, judge, settings, generator_id=generator_id, judge_id=judge_id
    )
    async with aclosing(stream):
        async for event in stream:
            if isinstance(event, Answered):
                return event.trace
            decided = fold.add(event)
            if decided is not None and on_stage is not None:
                await on_stage(decided)
    raise AssertionError("the last event is the answer")


async def events(
    prompt: Prompt,
    generator: Generator,
    judge: Judge | None,
    settings: SearchSettings,
    *,
    generator_id: str,
    judge_id: str | None,
) -> AsyncGenerator[Event, None]:
    """What happens during one search, in order, `Answered` last. The search goes on when the next
    event is asked for, and ends when the iterator is closed.

    Raises ValueError for a prompt or settings that cannot be searched with (UnfitError if these
    models are the reason), SearchError where generator or judge break their protocol; what the
    generator raises itself passes through, and so does a judge's ValueError. Any other failure of
    the judge leaves its pairs as ties.
    """
    check_prompt(prompt)
    if settings.needs_judge and judge is None:
        raise ValueError(f"{settings.method} with {settings.n} candidates needs a judge.")
    judged_by = judge_id if settings.needs_judge else None
    calibration = calibration_of(settings, generator_id, judged_by)
    started, fold = time.perf_counter(), Fold()
    heard: asyncio.Queue[Event | None] = asyncio.Queue()

    async def emit(event: Event) -> None:
        await heard.put(event)
        await heard.join()

    async def run() -> None:
        try:
            search = Search(prompt, generator, judge, settings, emit, calibration)
            await METHODS[settings.method](search)
        except OutOfBudget:
            pass  # the answer is what there is
        finally:
            heard.put_nowait(None)

    task = asyncio.create_task(run())
    try:
        while (event := await heard.get()) is not None:
            fold.add(event)
            yield event
            heard.task_done()
        await task
        make = partial(_trace, prompt, settings, generator_id, judged_by, calibration)
        yield Answered(make(fold, time.perf_counter() - started))
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _trace(
    prompt: Prompt,
    settings: SearchSettings,
    generator_id: str,
    judge_id: str | None,
    calibration: Calibration | None,
    fold: Fold,
    seconds: float,
) -> Trace:
    parsed = parse(fold.text)
    counters = (Usage(**s.usage.model_dump(exclude={"seconds"})) for s in fold.stages)
    usage = sum(counters, Usage())
    fingerprint = None if calibration is None else calibration.fingerprint
    return Trace(
        id=_trace_id(prompt, settings, generator_id, judge_id, fingerprint),
        messages=tuple(MessageTrace(role=m.role, text=m.text) for m in prompt.messages),
        image_digests=tuple(image_digest(image) for image in prompt.images),
        image_turns=prompt.places,
        method=settings.method,
        candidates=_drawn(settings),
        tournament=_tournament(settings),
        temperature=settings.sampling.temperature,
        top_p=settings.sampling.top_p,
        seed=settings.seed,
        early_stop_margin=settings.early_stop_margin if settings.plays else None,
        budget=settings.budget if settings.plays else "fixed",
        max_answer_tokens=settings.max_answer_tokens,
        max_seconds=settings.max_seconds,
        generator=generator_id,
        judge=judge_id,
        calibration=fingerprint,
        stages=tuple(fold.stages),
        retraces=tuple(fold.retraces),
        limited=fold.limited,
        text=fold.text,
        conclusion=parsed.conclusion,
        problems=tuple(str(problem) for problem in parsed.problems),
        usage=usage_trace(usage, seconds),
    )


def _drawn(settings: SearchSettings) -> int | dict[str, int]:
    if settings.method == "greedy" or isinstance(settings.candidates, int):
        return settings.n
    return dict(settings.candidates)


def _tournament(settings: SearchSettings) -> str:
    return settings.form if settings.plays else "none"


def _trace_id(
    prompt: Prompt,
    settings: SearchSettings,
    generator_id: str,
    judge_id: str | None,
    calibration: str | None,
) -> str:
    """32 hex digits that follow from everything the answer follows from."""
    sampling = settings.sampling
    parts = [
        question_key(prompt),
        [settings.method, _drawn(settings), _tournament(settings), settings.tie_margin],
        [settings.seed, settings.early_stop_margin, settings.budget, settings.explain],
        [settings.max_answer_tokens, settings.max_seconds],
        [settings.kept, settings.max_retraces, calibration],
        [sampling.temperature, sampling.top_p, sampling.max_new_tokens],
        [generator_id, judge_id],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
