"""Asking: questions go to a served endpoint, or to a generator in this process, and are scored."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, cast

from openai import APIConnectionError, APIStatusError, AsyncOpenAI, InternalServerError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from stagebeam.evaluation.answers import AnswerRow, AnswerStore, Rule
from stagebeam.evaluation.claim import JUDGE_ALONE
from stagebeam.evaluation.question import prompt_of
from stagebeam.inference.types import Generator, Judge
from stagebeam.openai_shape import openai_messages
from stagebeam.records import Example
from stagebeam.search import SearchSettings, Trace, answer
from stagebeam.search.settings import Method

RETRIES = 3
RETRY_WAIT_S = 1.0  # before the first retry; each later wait is four times as long
# What may go better the next time; a refusal will not.
_PASSING = (APIConnectionError, InternalServerError)


class Ask(Protocol):
    """Answers the last user turn of an example, its earlier turns given with their gold answers.

    Whatever it raises counts as the failure of that one question.
    """

    async def __call__(self, example: Example, method: Method, n: int) -> Trace: ...


class HttpAsk:
    """Asks a served endpoint by the OpenAI client. Passing errors are retried.

    `calibration` is the fingerprint of the cutoffs that `retrace` must have searched with: the
    file is the server's own. An answer with others is a failure.
    """

    def __init__(
        self,
        client: AsyncOpenAI,
        model: str,
        settings: SearchSettings,
        calibration: str | None = None,
    ) -> None:
        self._client = client.with_options(max_retries=0)  # the retries are here
        self._model, self._calibration = model, calibration
        self._search = {
            "tournament": settings.tournament,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_new_tokens": settings.max_new_tokens,
            "seed": settings.seed,
            "early_stop_margin": settings.early_stop_margin,
            "budget": settings.budget,
            "max_answer_tokens": settings.max_answer_tokens,
            "max_seconds": settings.max_seconds,
            "explain": settings.explain,
            "max_retraces": settings.max_retraces,
            "include_trace": True,
            # What a row says an answer cost must not tell how many replicas idled, or were there.
            "undivided": True,
        }

    async def __call__(self, example: Example, method: Method, n: int) -> Trace:
        search = {**self._search, "method": method, "candidates": n}
        prompt = prompt_of(example)
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(_PASSING),
            stop=stop_after_attempt(1 + RETRIES),
            wait=wait_exponential(multiplier=RETRY_WAIT_S, exp_base=4),
            reraise=True,
        ):
            with attempt:
                reply = await self._client.chat.completions.create(
                    model=self._model,
                    messages=openai_messages(prompt.messages, prompt.images),
                    extra_body={"search": search},
                )
        trace = Trace.model_validate((reply.model_extra or {}).get("trace"))
        if method == "retrace" and self._calibration not in (None, trace.calibration):
            raise ValueError(
                f"the endpoint retraces by the calibration {trace.calibration}, the recipe names "
                f"{self._calibration}"
            )
        return trace


class EngineAsk:
    """Asks engines in this process; without a judge they can be asked greedily alone."""

    def __init__(
        self,
        generator: Generator,
        fingerprint: str,
        settings: SearchSettings,
        judge: Judge | None = None,
        judge_fingerprint: str | None = None,
    ) -> None:
        self._generator, self._fingerprint, self._settings = generator, fingerprint, settings
        self._judge, self._judge_fingerprint = judge, judge_fingerprint

    async def __call__(self, example: Example, method: Method, n: int) -> Trace:
        return await answer(
            prompt_of(example),
            self._generator,
            self._judge,
            replace(self._settings, method=method, candidates=n),
            generator_id=self._fingerprint,
            judge_id=self._judge_fingerprint,
        )


async def run_method(
    ask: Ask,
    examples: Sequence[Example],
    method: str,
    n: int,
    store: AnswerStore,
    *,
    concurrency: int,
    rule: Rule | None = None,
    on_answer: Callable[[AnswerRow], None] = lambda row: None,
) -> list[AnswerRow]:
    """Ask every example that `store` has no answer to; returns all rows, in the examples' order.

    `method` is a search method, or `judge_alone`, which asks greedily under its own name. A
    question that fails becomes a row with the reason, and the next run asks it again.
    """
    slots = asyncio.Semaphore(concurrency)
    asked = cast(Method, "greedy" if method == JUDGE_ALONE else method)

    async def one(example: Example) -> AnswerRow:
        row = store.finished(method, n, example)
        if row is None:
            async with slots:
                row = await attempt(example)
        on_answer(row)
        return row

    async def attempt(example: Example) -> AnswerRow:
        started = time.perf_counter()
        try:
            trace = await ask(example, asked, n)
        except Exception as error:  # any failure is one question's, counted with its reason
            seconds = time.perf_counter() - started
            row = AnswerRow.failure(method, n, example, reason_of(error), seconds)
            store.add(row, None)
            return row
        row = AnswerRow.of(method, n, example, trace, time.perf_counter() - started, rule)
        store.add(row, trace)
        return row

    return list(await asyncio.gather(*map(one, examples)))


def reason_of(error: Exception) -> str:
    """One line: the server's own sentence where it gave one."""
    body = error.body if isinstance(error, APIStatusError) else None
    said = body.get("message") if isinstance(body, dict) else None
    return " ".join(f"{type(error).__name__}: {said or error}".split())[:300]
