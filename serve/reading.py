"""A request's body becomes a question: bounded, validated, within the operator's limits."""

from __future__ import annotations

from pydantic import ValidationError
from starlette.requests import Request

from serve.errors import ApiError
from serve.images import read_data_url
from serve.protocol import ChatMessage, ChatRequest
from stagebeam.inference.types import Prompt
from stagebeam.recipe import Limits, SearchConfig, describe
from stagebeam.records import Message
from stagebeam.search import SearchSettings, check_prompt
from stagebeam.stages import Stage, wrap

# Sampling fields of OpenAI's shape and what they are called in `search`.
_TOP_LEVEL = {
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
}


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises ApiError 413 as soon as it is longer than `max_bytes`."""
    too_large = ApiError(
        413, f"The request body is larger than the {max_bytes} bytes that this server allows."
    )
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise too_large
    return bytes(body)


def parse_chat(body: bytes) -> ChatRequest:
    """Raises ApiError 400 that names every wrong field."""
    try:
        chat = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        where = error.errors()[0]["loc"]
        if not where:
            raise ApiError(400, "The request body is not a JSON object.") from None
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
    asked = chat.search.model_dump(exclude_none=True, exclude={"include_trace", "include_events"})
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


def to_prompt(chat: ChatRequest, limits: Limits) -> Prompt:
    """The conversation, its images decoded once to know that they can be.

    Raises ApiError 400 for a conversation over a limit, with a bad image, with an image anywhere
    but in the first user message, or that cannot be answered.
    """
    messages = chat.messages
    if len(messages) > limits.max_turns:
        raise _refused(f"The conversation is over this server's limit of {limits.max_turns} turns.")
    if sum(len(message.text) for message in messages) > limits.max_text_chars:
        raise _refused(
            f"The text is over this server's limit of {limits.max_text_chars} characters."
        )
    try:
        prompt = Prompt(tuple(Message(m.role, _text(m)) for m in messages))
        check_prompt(prompt)
        return Prompt(prompt.messages, _images(messages, limits))
    except ValueError as error:
        raise _refused(str(error)) from None


def _text(message: ChatMessage) -> str:
    """A turn as the model was trained on it: an earlier answer with all its stages, if sent."""
    if message.role == "assistant" and message.reasoning_content:
        return f"{message.reasoning_content}\n{wrap(Stage.CONCLUSION, message.text)}"
    return message.text


def _images(messages: list[ChatMessage], limits: Limits) -> tuple[bytes, ...]:
    first_user = next(message for message in messages if message.role == "user")
    if any(message.image_urls for message in messages if message is not first_user):
        raise ValueError("Images belong in the first user message.")
    urls = first_user.image_urls
    if len(urls) > limits.max_images:
        raise ValueError(f"There are {len(urls)} images; this server allows {limits.max_images}.")
    return tuple(read_data_url(url, limits.max_image_pixels) for url in urls)


def _refused(message: str) -> ApiError:
    return ApiError(400, message, param="messages")
