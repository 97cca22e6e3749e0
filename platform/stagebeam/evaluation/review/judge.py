"""A judge model behind an OpenAI-compatible server that reviews answers, and what it said.

An endpoint of this project is one too: the `content` of its replies is the conclusion.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion
from openai.types.chat.chat_completion import Choice

from stagebeam.evaluation.review.cache import ReplyCache
from stagebeam.evaluation.scorers.conclusion import Outcome
from stagebeam.inference.chat_server import ChatServer, PassingError, ServerError
from stagebeam.openai_shape import openai_messages
from stagebeam.recipe import ReviewConfig
from stagebeam.records import Message

_HOTTEST = 2.0  # the most that servers take as a temperature


@dataclass(frozen=True, slots=True)
class Reply:
    """A judge's text, or, where the call failed after all its tries, None and why."""

    text: str | None
    error: str | None = None
    server_failed: bool = False  # not this one request's fault

    @property
    def failed(self) -> bool:
        return self.error is not None


@dataclass(frozen=True, slots=True)
class Review:
    """What became of one answer, the replies that it took, and how many of them say nothing that
    was asked for."""

    outcome: Outcome
    replies: tuple[Reply, ...] = ()
    unread: int = 0


class Judge:
    """Asks for reviews. A reply is kept under the fingerprint of what made it (the model's name,
    the messages, the sampling settings, the prompt's version, not the server) and never asked for
    again; a failed call is not kept."""

    def __init__(self, config: ReviewConfig, server: ChatServer, cache: ReplyCache) -> None:
        self._config, self._server, self._cache = config, server, cache

    async def ask(self, prompt: str, version: str, *, warmer: float = 0.0) -> Reply:
        """The reply to a prompt, sampled at the configured temperature and `warmer` above it."""
        config = self._config
        messages = openai_messages([Message("user", prompt)], ())
        temperature = min(config.temperature + warmer, _HOTTEST)
        call = _fingerprint(
            model=config.model,
            prompt=version,
            messages=messages,
            temperature=temperature,
            max_tokens=config.max_tokens,
            extra=config.extra,
        )
        if (kept := self._cache.find(call)) is not None:
            return Reply(kept)
        body: dict[str, Any] = {
            "messages": messages,
            "temperature": temperature,
            config.max_tokens_field: config.max_tokens,
            "extra_body": config.extra,
        }

        async def once(client: AsyncOpenAI) -> Choice:
            said = await client.chat.completions.create(model=config.model, **body)
            if not isinstance(said, ChatCompletion) or not said.choices:
                raise PassingError("broken reply")
            return said.choices[0]

        try:
            choice = await self._server.retried(once)
        except ServerError as error:
            return Reply(None, str(error), server_failed=True)
        except ValueError as error:
            return Reply(None, str(error))
        text = choice.message.content or choice.message.refusal or ""
        about = {"model": config.model, "prompt": version, "finish": choice.finish_reason}
        self._cache.keep(call, text, **about)
        return Reply(text)


@asynccontextmanager
async def reviewing(config: ReviewConfig, path: Path) -> AsyncIterator[Judge]:
    """A judge whose replies are kept in the file at `path`.

    Raises ValueError if that is damaged.
    """
    cache = ReplyCache(path)
    async with aclosing(ChatServer(config.as_engine)) as server:
        yield Judge(config, server, cache)


def _fingerprint(**parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
