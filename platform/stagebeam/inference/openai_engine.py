"""A generator behind any server that speaks OpenAI's chat API: SGLang, vLLM or a hosted model.

A call continues `prompt` + `prefix`: the prefix is the last message, the assistant's, which the
server is told to continue. That, and stop tags that stay in the text, are keys that vLLM and
SGLang add to the API; where a server has none of them (`server.extensions: false`), there is no
continuing and the stop tags are looked for here, while the text arrives.

What a server does not tell stays unknown:
- `logprob` is 0 where it gives no log-probabilities. vLLM gives those at temperature 1.
- `sequential_passes` is the longest candidate: the server's own passes are not seen.
- `image_encodes` is 0. `prefill_tokens` leaves out cache hits as far as the server reports them.
- Seeds are kept to as the server likes: vLLM does, SGLang has a flag for it (docs/engines.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai import AsyncOpenAI, AsyncStream
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import Choice

from stagebeam.inference.chat_server import ChatServer, PassingError, ServerError, chat_messages
from stagebeam.inference.types import Candidate, FinishReason, GenerateRequest, Usage

_SEED_BITS = 0x7FFF_FFFF  # some servers take no longer ones


@dataclass(slots=True)
class _Reply:
    """One candidate while it arrives."""

    index: int
    stops: tuple[str, ...]
    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    pieces: int = 0  # chunks with text: about a token each
    finish: FinishReason | None = None
    usage: CompletionUsage | None = None

    def add(self, chunk: ChatCompletionChunk) -> None:
        if chunk.usage is not None:
            self.usage = chunk.usage
        for choice in chunk.choices:
            if choice.delta.content:
                self.text += choice.delta.content
                self.pieces += 1
            if choice.logprobs is not None:
                self.logprobs += [token.logprob for token in choice.logprobs.content or ()]
            if choice.finish_reason is not None:
                self._end(choice)
        cut = cut_at_stop(self.text, self.stops)
        if cut is not None:
            self.text, self.finish = cut, "stop"

    def _end(self, choice: Choice) -> None:
        self.finish = "length" if choice.finish_reason == "length" else "end"
        # Of a server that dropped the tag: vLLM and SGLang name it, null or a token id is the
        # end of the turn.
        extra = choice.model_extra or {}
        seen = extra.get("stop_reason") or extra.get("matched_stop")
        if seen in self.stops and cut_at_stop(self.text, self.stops) is None:
            self.text += seen

    @property
    def tokens(self) -> int:
        if self.usage is not None:
            return self.usage.completion_tokens
        return len(self.logprobs) or self.pieces

    def candidate(self) -> Candidate:
        finish = self.finish or "length"  # cut by the time limit
        return Candidate(self.index, self.text, self.tokens, sum(self.logprobs), finish)


class OpenAIEngine:
    """Implements the Generator protocol."""

    def __init__(self, server: ChatServer) -> None:
        self.server = server
        self.fingerprint = f"openai-{server.fingerprint}"

    async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
        """Candidates as they finish, then the usage. Closing the iterator closes the requests,
        which ends the server's work.

        Raises ValueError for a request that the server refuses, ServerError where it keeps
        failing.
        """
        body = self._body(request)
        tasks = [
            asyncio.create_task(self._reply(request, body, index))
            for index in range(len(request.seeds))
        ]
        replies: list[_Reply] = []
        try:
            for finished in asyncio.as_completed(tasks):
                replies.append(await finished)
                yield replies[-1].candidate()
            yield _usage(replies)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def check(self) -> None:
        """Nothing: a server that is down would not be mended by another one of us."""

    def close(self) -> None:
        """Close the connections."""
        self.server.close()

    def _body(self, request: GenerateRequest) -> dict[str, Any]:
        """All that the candidates' requests have in common."""
        config, sampling = self.server.config, request.sampling
        messages = chat_messages(request.prompt)
        extra: dict[str, bool] = {}
        body: dict[str, Any] = {
            "messages": messages,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            config.max_tokens_field: sampling.max_new_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if config.extensions:
            body["stop"] = list(request.stops)
            extra |= {"include_stop_str_in_output": True, "no_stop_trim": True}  # vLLM's, SGLang's
        if request.prefix:
            if not config.extensions:
                raise ValueError(
                    f"{self.server.who} cannot continue an answer (server.extensions: false), so "
                    "it can generate no stage after the first."
                )
            messages.append({"role": "assistant", "content": request.prefix})
            extra |= {"continue_final_message": True, "add_generation_prompt": False}
        return {**body, "extra_body": extra}

    async def _reply(self, request: GenerateRequest, body: dict[str, Any], index: int) -> _Reply:
        """One candidate's reply, or what there is of it when the time is over."""
        reply = _Reply(index, request.stops)
        tries = 0

        async def once(client: AsyncOpenAI) -> None:
            nonlocal reply, tries
            reply, tries = _Reply(index, request.stops), tries + 1
            await self._read(client, {**body, "seed": request.seeds[index] & _SEED_BITS}, reply)

        try:
            async with asyncio.timeout(request.seconds):
                await self.server.retried(once)
        except TimeoutError:
            if tries > 1 and not reply.text:
                raise ServerError(
                    f"{self.server.who} failed {tries - 1} times in {request.seconds} seconds."
                ) from None
        return reply

    async def _read(self, client: AsyncOpenAI, body: dict[str, Any], reply: _Reply) -> None:
        """Fill `reply` from a stream, which is closed however this ends."""
        stream = await self.server.create(client, {"logprobs": True}, body)
        if not isinstance(stream, AsyncStream):
            raise PassingError("broken reply")
        async with stream:
            async for chunk in stream:
                reply.add(chunk)
                if reply.finish == "stop" and "stop" not in body:
                    return  # the server does not know that it may stop
        if reply.finish is None:
            raise PassingError("the reply broke off")


def cut_at_stop(text: str, stops: Sequence[str]) -> str | None:
    """The text up to the end of the first stop in it; None where there is none."""
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else None


def _usage(replies: Sequence[_Reply]) -> Usage:
    cached = [_cached(reply.usage) for reply in replies]
    prompts = [reply.usage.prompt_tokens if reply.usage else 0 for reply in replies]
    return Usage(
        prefill_tokens=sum(prompts) - sum(cached),
        decode_tokens=sum(reply.tokens for reply in replies),
        sequential_passes=max((reply.tokens for reply in replies), default=0),
        cache_hits=int(any(cached)),
    )


def _cached(usage: CompletionUsage | None) -> int:
    details = usage.prompt_tokens_details if usage is not None else None
    return (details.cached_tokens or 0) if details is not None else 0
