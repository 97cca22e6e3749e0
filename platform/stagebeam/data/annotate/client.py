"""Calls to an OpenAI-compatible endpoint: replayed from the journal, or made, retried and kept."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any

from openai import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AsyncOpenAI,
)
from openai.types.chat import ChatCompletion
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential_jitter,
)

from stagebeam.annotate_config import EndpointConfig
from stagebeam.data.annotate.checks import FaultyError
from stagebeam.data.annotate.control import Budget, Pace, Stop, StoppedError
from stagebeam.data.annotate.journal import Journal, Reply
from stagebeam.openai_errors import refusal, retry_after_s
from stagebeam.openai_shape import openai_messages
from stagebeam.records import Message

_LONGEST_WAIT_S = 60.0  # between two tries, unless the endpoint asks for more
_MESSAGE_TOKENS = 32  # most that a chat template puts around one message
_BYTES_A_TOKEN = 4  # about, in English; never less than 1


@dataclass(frozen=True, slots=True)
class Call:
    """A request. `key` names the row, turn, attempt and purpose; images lead the first turn."""

    key: tuple[str | int, ...]
    messages: tuple[Message, ...]
    images: tuple[bytes, ...]
    temperature: float
    max_tokens: int
    seed: int


class _CallError(Exception):
    """A request that brought no usable reply."""

    def __init__(self, cause: str, *, unsure: bool = False) -> None:
        super().__init__(cause)
        self.cause = cause  # short, to be counted by
        self.unsure = unsure  # may have been paid for


class _PassingError(_CallError):
    """It may go better the next time."""


class _RefusedError(_CallError):
    """The endpoint does not take this request, or (`fatal`) any of ours; it `says` why."""

    def __init__(self, cause: str, says: str, *, fatal: bool) -> None:
        super().__init__(cause)
        self.says, self.fatal = says, fatal


class Endpoint:
    """One model behind one endpoint, asked within the limits."""

    def __init__(
        self, config: EndpointConfig, role: str, journal: Journal, budget: Budget, stop: Stop
    ) -> None:
        """`role` is the section of the recipe, for what is told to a person."""
        self._config, self._role = config, role
        self._journal, self._budget, self._stop = journal, budget, stop
        self.asked: set[str | int] = set()  # rows for which this run has made a request
        self._pace = Pace(config.requests_per_minute, config.tokens_per_minute, stop)
        self._backoff = wait_exponential_jitter(
            multiplier=config.retry_wait_s, max=_LONGEST_WAIT_S, jitter=config.retry_wait_s
        )
        self._client = AsyncOpenAI(
            base_url=config.base_url,
            # The client wants one; a server without keys does not look at it.
            api_key=os.environ.get(config.api_key_env) or "none",
            timeout=config.timeout_s,
            max_retries=0,  # the retries are here
        )

    @property
    def model(self) -> str:
        return self._config.model

    async def close(self) -> None:
        await self._client.close()

    async def ask(self, call: Call) -> Reply:
        """The reply to a call, from the journal if it was made before.

        Raises FaultyError if the endpoint refuses it or keeps failing, StoppedError if the job
        ends before the call is made.
        """
        fingerprint = _fingerprint(self._config.model, call)
        if (reply := self._journal.find(fingerprint)) is not None:
            return reply
        self.asked.add(call.key[0])
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_PassingError),
            stop=stop_after_attempt(1 + self._config.retries),
            wait=self._backoff,
            sleep=self._stop.sleep,
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    return await self._try(call, fingerprint)
        except _PassingError as error:
            tries = 1 + self._config.retries
            reason = f"The {self._role} failed {tries} times, the last time with: {error.cause}."
            raise FaultyError("endpoint", reason) from None
        except _RefusedError as error:
            # A first call that is refused means that the settings are wrong, not the row.
            if error.fatal or not self._journal.totals.replies:
                self._stop.set(error.says)
                raise StoppedError from None
            raise FaultyError("request refused", f"{error.says}.") from None
        raise AssertionError("the last try returns or raises")

    async def _try(self, call: Call, fingerprint: str) -> Reply:
        most = self._most(call)
        self._stop.check()
        if not await self._budget.reserve(most):
            self._stop.set(f"The next call could pass the spending limit: {self._budget}")
            raise StoppedError
        spent = 0.0
        try:
            about = about_prompt_tokens(call, self._config) + call.max_tokens
            await self._pace.turn(about)
            number = self._journal.sent(fingerprint, "/".join(map(str, call.key)), most)
            spent = most  # until more is known
            try:
                reply = self._read(call, await self._create(call))
            except (APIError, _CallError, ValueError) as error:
                failure = self._failure(error)
                spent = most if failure.unsure else 0.0
                self._journal.failed(number, failure.cause, unsure=failure.unsure)
                raise failure from None
            spent = reply.cost
            self._journal.replied(number, fingerprint, reply)
            self._pace.correct(reply.prompt_tokens + reply.completion_tokens - about)
            return reply
        finally:
            await self._budget.settle(most, spent)

    async def _create(self, call: Call) -> object:
        config = self._config
        limit: dict[str, Any] = {config.max_tokens_field: call.max_tokens}
        return await self._client.chat.completions.create(
            model=config.model,
            messages=openai_messages(call.messages, call.images),
            temperature=call.temperature,
            seed=call.seed,
            **limit,
        )

    def _read(self, call: Call, completion: object) -> Reply:
        """Raises _PassingError for a reply that is not of OpenAI's form."""
        if not isinstance(completion, ChatCompletion) or not completion.choices:
            raise _PassingError("broken reply", unsure=True)
        choice = completion.choices[0]
        content = _clean(choice.message.content or choice.message.refusal or "")
        extra = choice.message.model_extra or {}
        reasoning = _clean(extra.get("reasoning_content") or extra.get("reasoning") or "")
        usage = completion.usage
        prompt = usage.prompt_tokens if usage else self._most_prompt_tokens(call)
        written = usage.completion_tokens if usage else len(f"{reasoning}{content}".encode())
        return Reply(
            content,
            reasoning,
            choice.finish_reason,
            prompt,
            written,
            self._cost(prompt, written),
        )

    def _failure(self, error: Exception) -> _CallError:
        """What went wrong, and whether another try can help."""
        if isinstance(error, _CallError):
            return error
        if isinstance(error, APIStatusError):
            return self._status_failure(error)
        if isinstance(error, APITimeoutError):
            return _PassingError("timeout", unsure=_was_sent(error))
        if isinstance(error, APIConnectionError):
            return _PassingError("connection", unsure=_was_sent(error))
        return _PassingError("broken reply", unsure=True)  # not JSON, or not of OpenAI's form

    def _status_failure(self, error: APIStatusError) -> _CallError:
        config, cause = self._config, str(error.status_code)
        who = f"The {self._role} at {config.base_url}"
        refused = refusal(error, who, config.model, config.api_key_env)
        if refused is not None:
            return _RefusedError(cause, refused.says, fatal=refused.fatal)
        if (wait := retry_after_s(error)) is not None:
            self._pace.pause(wait)
        return _PassingError(cause)

    def _most(self, call: Call) -> float:
        """What the call can cost at most: a token is never less than a byte."""
        return self._cost(self._most_prompt_tokens(call), call.max_tokens)

    def _most_prompt_tokens(self, call: Call) -> int:
        images = len(call.images) * self._config.tokens_per_image
        return _prompt_bytes(call) + images + (1 + len(call.messages)) * _MESSAGE_TOKENS

    def _cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        config = self._config
        return (prompt_tokens * config.price_in + completion_tokens * config.price_out) / 1e6


def about_prompt_tokens(call: Call, config: EndpointConfig) -> int:
    """Roughly, as English text and images of the recipe's size have it."""
    images = len(call.images) * config.tokens_per_image
    return _prompt_bytes(call) // _BYTES_A_TOKEN + images


def draw_seed(*parts: str | int) -> int:
    """A seed of 31 bits (some servers take no longer ones) that follows from its parts."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def attempt_temperature(config: EndpointConfig, attempt: int) -> float:
    """An attempt after a bad one (0 is the first) is warmer, so that it says something else."""
    return max(config.temperature, round(min(1.0, config.temperature + 0.2 * attempt), 3))


def _fingerprint(model: str, call: Call) -> str:
    parts = [
        model,
        call.key,
        [(message.role, message.text) for message in call.messages],
        [hashlib.sha256(image).hexdigest() for image in call.images],
        call.temperature,
        call.max_tokens,
        call.seed,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _prompt_bytes(call: Call) -> int:
    return sum(len(message.text.encode()) for message in call.messages)


def _clean(text: object) -> str:
    """JSON can spell half of a surrogate pair, which no file or request can hold."""
    return str(text).encode(errors="replace").decode()


def _was_sent(error: APIConnectionError) -> bool:
    """Whether the request can have reached the endpoint."""
    unsent = {"ConnectError", "ConnectTimeout", "PoolTimeout"}
    return type(error.__cause__).__name__ not in unsent
