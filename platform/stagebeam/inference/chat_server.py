"""Calls to an OpenAI-compatible server: one at a time or streamed, tried again where that helps."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from openai import APIError, APIStatusError, APITimeoutError, AsyncOpenAI, BadRequestError
from openai.types.chat import ChatCompletionMessageParam
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential_jitter,
)

from stagebeam.inference.types import Prompt
from stagebeam.openai_errors import refusal, retry_after_s, server_words
from stagebeam.openai_shape import openai_messages
from stagebeam.recipe import EngineConfig

_LONGEST_WAIT_S = 60.0  # between two tries, whatever the server asks for
_T = TypeVar("_T")
# How models behind such servers write their special tokens.
_MARKER = re.compile(
    r"<\|[^\s<>|]{1,40}\|>|<\uff5c[^<>]{1,40}\uff5c>|\[/?INST\]|<</?SYS>>|\[IMG(?:_BREAK|_END)?\]|</?s>"
    r"|</?(?:start_of_turn|end_of_turn|start_of_image|end_of_image|image_soft_token|bos|eos|pad"
    r"|unk|image|video|audio|img|IMG_CONTEXT)>"
)


class ServerError(RuntimeError):
    """The server keeps failing, or takes no request of ours; one sentence for its operator."""


class PassingError(Exception):
    """A call that may go better the next time; says in a few words what went wrong."""

    def __init__(self, cause: str, retry_after_s: float = 0.0) -> None:
        super().__init__(cause)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class _Connections:
    """What belongs to one event loop; an engine may be used in several, one after another."""

    loop: asyncio.AbstractEventLoop
    client: AsyncOpenAI
    slots: asyncio.Semaphore


class ChatServer:
    """One model behind a server."""

    def __init__(self, config: EngineConfig) -> None:
        """At most `scaling.max_batch_rows` calls are in flight; the others wait."""
        assert config.server is not None, "the recipe checks it"
        self.model, self.config = config.model, config.server
        digest = hashlib.sha256(config.server.base_url.encode()).hexdigest()[:8]
        self.fingerprint = f"{config.model}@{digest}"
        self._calls = config.scaling.max_batch_rows
        self._backoff = wait_exponential_jitter(
            multiplier=self.config.retry_wait_s,
            max=_LONGEST_WAIT_S,
            jitter=self.config.retry_wait_s,
        )
        self._logprobs = True  # until the server says that it has none
        self._connections: _Connections | None = None

    async def retried(self, call: Callable[[AsyncOpenAI], Awaitable[_T]]) -> _T:
        """What `call` returns, which is made anew after every failure in passing.

        Raises ValueError where the server refuses this one request, else ServerError.
        """
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(PassingError),
            stop=stop_after_attempt(1 + self.config.retries),
            wait=self._wait,
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    return await self._once(call)
        except PassingError as error:
            tries = 1 + self.config.retries
            raise ServerError(
                f"{self.who} failed {tries} times, the last time with: {error}."
            ) from None
        raise AssertionError("the last try returns or raises")

    async def create(
        self, client: AsyncOpenAI, logprobs: dict[str, Any], body: dict[str, Any]
    ) -> object:
        """One request, without the `logprobs` where the server refuses those."""
        if self._logprobs:
            try:
                return await client.chat.completions.create(model=self.model, **body, **logprobs)
            except BadRequestError as error:
                if "logprob" not in server_words(error):
                    raise
                self._logprobs = False
        return await client.chat.completions.create(model=self.model, **body)

    def close(self) -> None:
        """Close the connections, where their loop still runs."""
        connections, self._connections = self._connections, None
        if connections is not None and connections.loop.is_running():
            asyncio.run_coroutine_threadsafe(connections.client.close(), connections.loop)

    async def aclose(self) -> None:
        """Close the connections, in their own loop."""
        connections, self._connections = self._connections, None
        if connections is not None:
            await connections.client.close()

    @property
    def who(self) -> str:
        return f"The server at {self.config.base_url}"

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.retry_after_s if isinstance(error, PassingError) else 0.0
        return min(max(self._backoff(state), asked), _LONGEST_WAIT_S)

    async def _once(self, call: Callable[[AsyncOpenAI], Awaitable[_T]]) -> _T:
        connections = self._connected()
        async with connections.slots:
            try:
                return await call(connections.client)
            except APIStatusError as error:
                raise self._failure(error) from None
            except APITimeoutError:
                raise PassingError("timeout") from None
            except APIError as error:
                raise PassingError(_line(error.message)) from None
            except json.JSONDecodeError:
                raise PassingError("broken reply") from None

    def _failure(self, error: APIStatusError) -> Exception:
        refused = refusal(error, self.who, self.model, self.config.api_key_env)
        if refused is None:
            return PassingError(str(error.status_code), retry_after_s(error) or 0.0)
        return (ServerError if refused.fatal else ValueError)(f"{refused.says}.")

    def _connected(self) -> _Connections:
        loop = asyncio.get_running_loop()
        if self._connections is None or self._connections.loop is not loop:
            client = AsyncOpenAI(
                base_url=self.config.base_url,
                # The client wants one; a server without keys does not look at it.
                api_key=os.environ.get(self.config.api_key_env) or "none",
                timeout=self.config.timeout_s,
                max_retries=0,  # the retries are here
            )
            self._connections = _Connections(loop, client, asyncio.Semaphore(self._calls))
        return self._connections


def chat_messages(prompt: Prompt) -> list[ChatCompletionMessageParam]:
    """A prompt as the API takes it.

    Raises ValueError for an image that cannot be decoded, and for a message with what may be a
    marker of the server's chat template: the server tokenises what it is sent, and would take it
    for one.
    """
    for message in prompt.messages:
        if (marker := _MARKER.search(message.text)) is not None:
            raise ValueError(
                f"A message contains {marker[0]}, which may be a marker of the model's chat "
                "template."
            )
    try:
        return openai_messages(prompt.messages, prompt.images, prompt.places)
    except OSError:  # what Pillow raises for bytes of no known format
        raise ValueError("An image cannot be decoded.") from None


def _line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")[:300]
