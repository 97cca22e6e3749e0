"""A request's body becomes a question: bounded, validated, within the operator's limits."""

from __future__ import annotations

import asyncio

from pydantic import ValidationError
from starlette.requests import Request

from serve.errors import ApiError
from serve.images import read_images
from serve.json_text import read_json_object
from serve.protocol import ChatMessage, ChatRequest
from serve.remote_images import Fetcher
from stagebeam.inference.types import Prompt
from stagebeam.recipe import Limits, describe
from stagebeam.records import Message, Role
from stagebeam.search import SearchSettings, check_prompt
from stagebeam.search_config import SearchConfig
from stagebeam.stages import Stage, parse

# Sampling fields of OpenAI's shape and what they are called in `search`.
_TOP_LEVEL = {
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
}


async def read_body(request: Request, limits: Limits) -> bytes:
    """The whole body.

    Raises ApiError 413 as soon as it is longer than allowed, 408 where it takes too long to
    arrive, 415 where it is said to be something other than JSON.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0]
    if kind.strip().lower() != "application/json":
        raise ApiError(415, f"The request body must be application/json, not {kind[:100]}.")
    too_large = ApiError(
        413,
        f"The request body is larger than the {limits.max_body_bytes} bytes that this server "
        "allows.",
    )
    declared = request.headers.get("content-length", "0")
    if not (declared.isascii() and declared.isdigit()):
        raise ApiError(400, "The request's Content-Length is not a number.")
    if len(declared) > 20 or int(declared) > limits.max_body_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.max_body_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.max_body_bytes:
                    raise too_large
    except TimeoutError:
        raise ApiError(
            408, f"The request body took longer than {limits.max_body_seconds:g} seconds to arrive."
        ) from None
    return bytes(body)


def parse_chat(body: bytes) -> ChatRequest:
    """Raises ApiError 400 that names every wrong field."""
    try:
        chat = ChatRequest.model_validate(read_json_object(body))
    except ValidationError as error:
        where = error.errors()[0]["loc"]
        message = f"The request is wrong: {describe(error)}."
        raise ApiError(400, message, param=str(where[0])) from None
    if chat.search.include_events and not chat.stream:
        raise ApiError(
            400, "search.include_events needs a stream; ask with stream: true.", param="search"
        )
    return chat


def to_settings(chat: ChatRequest, defaults: SearchConfig, limits: Limits) -> SearchSettings:
    """What was asked for over the recipe's defaults.

    Raises ApiError 400 for a value over a limit, given twice, or that cannot be searched with.
    """
    answering = {"include_trace", "include_events", "reasoning", "undivided"}
    asked = chat.search.model_dump(exclude_none=True, exclude=answering)
    for name, target in _TOP_LEVEL.items():
        value = getattr(chat, name)
        if value is None:
            continue
        if asked.setdefault(target, value) != value:
            raise ApiError(400, f"{name} contradicts another field for {target}.", param=name)
    for name, limit in (
        ("candidates", limits.max_candidates),
        ("max_new_tokens", limits.max_new_tokens),
        ("max_answer_tokens", limits.max_answer_tokens),
        ("max_seconds", limits.max_seconds),
        ("max_retraces", limits.max_retraces),
    ):
        if limit is not None and _largest(asked.get(name, 0)) > limit:
            raise ApiError(400, f"{name} is over this server's limit of {limit}.", param=name)
    for name, allowed_here in (("method", limits.methods), ("tournament", limits.tournaments)):
        if allowed_here is not None and asked.get(name, allowed_here[0]) not in allowed_here:
            among = ", ".join(allowed_here)
            raise ApiError(400, f"{name} must be one of {among} on this server.", param=name)
    for name, allows, wants in (
        ("explain", limits.explain, asked.get("explain")),
        ("include_trace", limits.traces, chat.search.include_trace),
        ("include_events", limits.traces, chat.search.include_events),
    ):
        if wants and not allows:
            raise ApiError(400, f"{name} cannot be asked for on this server.", param=name)
    wanted = {**defaults.model_dump(), **asked}
    for name in ("max_answer_tokens", "max_seconds"):
        allowed = [v for v in (wanted[name], getattr(limits, name)) if v is not None]
        wanted[name] = min(allowed, default=None)
    try:
        return SearchSettings(**wanted)
    except ValueError as error:
        raise ApiError(400, str(error), param="search") from None


def _largest(value: float | dict[str, int]) -> float:
    return max(value.values(), default=0) if isinstance(value, dict) else value


async def to_prompt(chat: ChatRequest, limits: Limits, fetcher: Fetcher | None) -> Prompt:
    """The conversation, its images decoded once to know that they can be.

    Raises ApiError 400 for a conversation over a limit, with a bad image, with an image in a turn
    that is not the user's, or that cannot be answered.
    """
    messages = chat.messages
    if len(messages) > limits.max_turns:
        raise _refused(f"The conversation is over this server's limit of {limits.max_turns} turns.")
    said = sum(len(message.text) + len(message.reasoning_content or "") for message in messages)
    if said > limits.max_text_chars:
        raise _refused(
            f"The text is over this server's limit of {limits.max_text_chars} characters."
        )
    try:
        turns = tuple(Message(_role(m), _text(m)) for m in messages)
        check_prompt(Prompt(turns))
        urls, places = _images(messages, limits)
        return Prompt(turns, await read_images(urls, limits.max_image_pixels, fetcher), places)
    except ValueError as error:
        raise _refused(str(error)) from None


def _role(message: ChatMessage) -> Role:
    return "system" if message.role == "developer" else message.role


def _text(message: ChatMessage) -> str:
    """A turn as the model was trained on it: an earlier answer with all its stages, if they were
    sent, and otherwise its conclusion alone."""
    if message.role != "assistant" or not message.reasoning_content:
        return message.text
    if not message.text:  # the answer was cut before its conclusion
        return message.reasoning_content
    last = Stage.CONCLUSION
    staged = f"{message.reasoning_content}\n{last.open_tag} {message.text} {last.close_tag}"
    return staged if parse(staged).valid else message.text


def _images(messages: list[ChatMessage], limits: Limits) -> tuple[list[str], tuple[int, ...]]:
    """Where the images are, and the turn of each: none where all are in the user's first."""
    found = [(turn, url) for turn, m in enumerate(messages) for url in m.image_urls]
    if any(messages[turn].role != "user" for turn, _ in found):
        raise ValueError("Images belong in the user's messages.")
    if len(found) > limits.max_images:
        raise ValueError(f"There are {len(found)} images; this server allows {limits.max_images}.")
    first = next(turn for turn, message in enumerate(messages) if message.role == "user")
    places = tuple(turn for turn, _ in found)
    return [url for _, url in found], () if set(places) <= {first} else places


def _refused(message: str) -> ApiError:
    return ApiError(400, message, param="messages")
