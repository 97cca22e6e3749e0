"""A judge behind an OpenAI-compatible server: one token, its log-probabilities, in both orders.

It is asked what the `verdict` judge asks. The margin is the difference of the two options'
log-probabilities. A server gives those of its likeliest tokens alone: an option that is not among
them counts as likely as the least likely one given, which it cannot exceed, so that the margin is
a lower bound. Where neither is among them there is no verdict, which counts as a tie.

Of a server that gives no log-probabilities the verdict is taken as text (`text_judge`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from stagebeam.inference.chat_server import PassingError, chat_messages
from stagebeam.inference.explain import explain
from stagebeam.inference.openai_engine import OpenAIEngine
from stagebeam.inference.text_judge import TextJudge
from stagebeam.inference.together import at_once, gathered
from stagebeam.inference.types import Judgement, JudgeRequest, Usage, Verdict
from stagebeam.inference.wording import OPTIONS, verdict_messages

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Answer:
    """Log-odds that the first candidate shown is the better one, None for no verdict."""

    log_odds: float | None
    usage: Usage


class _NoLogprobsError(Exception):
    """The server answers without log-probabilities."""


class RemoteJudge:
    """Implements the Judge protocol."""

    def __init__(self, engine: OpenAIEngine, text: TextJudge) -> None:
        """`engine` writes explanations; `text` judges where its server gives no
        log-probabilities."""
        self.fingerprint = f"remote-{engine.server.fingerprint}"
        self._engine, self._text = engine, text
        self._server = engine.server
        self._has_logprobs = True  # until an answer comes without

    async def compare(self, request: JudgeRequest) -> Judgement:
        """A verdict for each pair.

        Raises ValueError for a request that the server refuses, ServerError where it keeps
        failing.
        """
        if self._has_logprobs:
            try:
                return await self._compare(request)
            except _NoLogprobsError:
                self._fall_back()
        return await self._text.compare(request)

    async def check(self) -> None:
        """As the engine's."""
        await self._engine.check()

    def close(self) -> None:
        """Close the connections."""
        self._engine.close()

    def _fall_back(self) -> None:
        if self._has_logprobs:  # calls under way at the same time find out together
            self._has_logprobs = False
            _logger.warning(
                "%s gives no log-probabilities of %s: its verdicts are taken as text from now on.",
                self._server.who,
                self._server.model,
            )

    async def _compare(self, request: JudgeRequest) -> Judgement:
        orders = [order for a, b in request.pairs for order in ((a, b), (b, a))]
        answers = await gathered(self._ask(request, *order) for order in orders)
        verdicts = tuple(
            _verdict(forward.log_odds, backward.log_odds)
            for forward, backward in zip(answers[::2], answers[1::2], strict=True)
        )
        usage = at_once(answer.usage for answer in answers)
        explanations: tuple[str, ...] = ()
        if request.explain:
            explanations, cost = await explain(self._engine, request, verdicts)
            usage += cost
        return Judgement(verdicts, replace(usage, judge_calls=1), explanations=explanations)

    async def _ask(self, request: JudgeRequest, first: int, second: int) -> _Answer:
        messages = verdict_messages(request, request.candidates[first], request.candidates[second])
        config = self._server.config
        body = {
            "messages": chat_messages(replace(request.prompt, messages=messages)),
            "temperature": 0.0,
            config.max_tokens_field: 1,
        }
        asked = {"logprobs": True, "top_logprobs": config.top_logprobs}

        async def once(client: AsyncOpenAI) -> _Answer:
            return _read(await self._server.create(client, asked, body))

        return await self._server.retried(once)


def option_log_odds(likeliest: Sequence[tuple[str, float]]) -> float | None:
    """Log-odds of option 1 over 2 from the likeliest tokens and their log-probabilities.

    White space around an option is not part of it. None where neither option is among them.
    """
    lowest = min((logprob for _, logprob in likeliest), default=0.0)
    found = [[lp for token, lp in likeliest if token.strip() == option] for option in OPTIONS]
    if not any(found):
        return None
    first, second = (_log_sum(logprobs) if logprobs else lowest for logprobs in found)
    return first - second


def _log_sum(logprobs: Sequence[float]) -> float:
    """Of the probabilities' sum; the largest is taken out so that none underflows."""
    top = max(logprobs)
    return top + math.log(sum(math.exp(logprob - top) for logprob in logprobs))


def _read(reply: object) -> _Answer:
    """Raises PassingError for a broken reply, _NoLogprobsError for one without them."""
    if not isinstance(reply, ChatCompletion) or not reply.choices:
        raise PassingError("broken reply")
    logprobs = reply.choices[0].logprobs
    if logprobs is None or not logprobs.content or not logprobs.content[0].top_logprobs:
        raise _NoLogprobsError
    likeliest = [(token.token, token.logprob) for token in logprobs.content[0].top_logprobs]
    log_odds = option_log_odds(likeliest)
    tokens = reply.usage.total_tokens if reply.usage else 0
    usage = Usage(judge_tokens=tokens, judge_failures=int(log_odds is None), sequential_passes=1)
    return _Answer(log_odds, usage)


def _verdict(forward: float | None, backward: float | None) -> Verdict:
    """From the first candidate's side; `backward` was asked with the pair swapped."""
    if forward is None or backward is None:
        return Verdict(0.0, 0.0)
    return Verdict(forward, -backward)
