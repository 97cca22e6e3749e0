"""The HTTP interface: OpenAI's chat completions, models, traces, health.

`http_app` is a plain FastAPI application over anything that searches; `Gateway` is the Serve
deployment that gives it the searcher's handle.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Protocol

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from serve.errors import ApiError, as_api_error
from serve.handles import HandleSearcher
from serve.pages import add_page
from serve.protocol import ChatRequest, Health, ModelCard, ModelList
from serve.reading import parse_chat, read_body, to_prompt, to_settings
from serve.replies import EventStream, completion, event
from stagebeam.inference.types import Prompt
from stagebeam.recipe import SearchConfig, ServeConfig
from stagebeam.search import SearchSettings
from stagebeam.search.events import Answered, Event, StageDecided
from stagebeam.search.trace import Trace

KEPT_TRACES = 1000
HEALTH_TIMEOUT_S = 10.0


class Searcher(Protocol):
    """What the interface needs: `HandleSearcher` in service."""

    def search(self, prompt: Prompt, settings: SearchSettings) -> AsyncGenerator[Event]: ...

    async def fingerprints(self) -> tuple[str, str]: ...


class TraceStore:
    """The latest traces in memory, found by the reply's id and by their own."""

    def __init__(self, size: int = KEPT_TRACES) -> None:
        self._size = size
        self._kept: OrderedDict[str, Trace] = OrderedDict()

    def put(self, reply_id: str, trace: Trace) -> None:
        for key in (reply_id, trace.id):
            self._kept[key] = trace
            self._kept.move_to_end(key)
        while len(self._kept) > 2 * self._size:
            self._kept.popitem(last=False)

    def get(self, key: str) -> Trace | None:
        return self._kept.get(key)


class Chat:
    """Answers one POST body after another."""

    def __init__(self, config: ServeConfig, defaults: SearchConfig, searcher: Searcher) -> None:
        self._config, self._defaults, self._searcher = config, defaults, searcher
        self.traces = TraceStore()

    async def reply(self, request: Request) -> Response:
        """Raises whatever went wrong before the first byte of the reply."""
        chat = parse_chat(await read_body(request, self._config.limits.max_body_bytes))
        if chat.model != self._config.model_name:
            raise ApiError(
                404,
                f"There is no model {chat.model!r}; this server has {self._config.model_name!r}.",
                param="model",
                code="model_not_found",
            )
        settings = to_settings(chat, self._defaults, self._config.limits)
        prompt = await asyncio.to_thread(to_prompt, chat, self._config.limits)
        found = self._searcher.search(prompt, settings)
        reply_id = f"chatcmpl-{uuid.uuid4().hex}"
        if not chat.stream:
            return JSONResponse(await self._whole(chat, reply_id, found))
        # An error before the first decision still gets its own HTTP status; who watches does not
        # wait for that one.
        begun = [await anext(found)]
        while not chat.search.include_events and not isinstance(begun[-1], StageDecided | Answered):
            begun.append(await anext(found))
        events = self._events(chat, reply_id, begun, found)
        return StreamingResponse(events, media_type="text/event-stream")

    async def _whole(
        self, chat: ChatRequest, reply_id: str, found: AsyncGenerator[Event]
    ) -> dict[str, object]:
        async with aclosing(found):
            *_, last = [happened async for happened in found]
        assert isinstance(last, Answered), "a search ends with its trace"
        self.traces.put(reply_id, last.trace)
        return completion(reply_id, chat.model, last.trace, include_trace=chat.search.include_trace)

    async def _events(
        self, chat: ChatRequest, reply_id: str, begun: list[Event], found: AsyncGenerator[Event]
    ) -> AsyncIterator[bytes]:
        stream = EventStream(reply_id, chat.model, include_events=chat.search.include_events)
        yield stream.opened()
        try:
            async with aclosing(found):
                async for happened in _chain(begun, found):
                    if isinstance(happened, Answered):
                        self.traces.put(reply_id, happened.trace)
                    for piece in stream.told(happened):
                        yield piece
                    if not isinstance(happened, Answered):
                        continue
                    for piece in stream.closed(
                        happened.trace,
                        include_usage=bool(
                            chat.stream_options and chat.stream_options.include_usage
                        ),
                        include_trace=chat.search.include_trace,
                    ):
                        yield piece
        except Exception as error:  # the status is sent already, so the stream says what happened
            yield event(as_api_error(error).body())


async def _chain(begun: list[Event], rest: AsyncGenerator[Event]) -> AsyncIterator[Event]:
    for happened in begun:
        yield happened
    async for happened in rest:
        yield happened


def http_app(config: ServeConfig, defaults: SearchConfig, searcher: Searcher) -> FastAPI:
    """The routes. Every error has OpenAI's shape, whatever raised it."""
    app = FastAPI(title=config.model_name, docs_url=None, redoc_url=None, openapi_url=None)
    chat = Chat(config, defaults, searcher)
    started = int(time.time())

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}."
        return ApiError(error.status_code, message).response()

    @app.post("/v1/chat/completions")
    async def completions(request: Request) -> Response:
        try:
            return await chat.reply(request)
        except Exception as error:
            return as_api_error(error).response()

    @app.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(data=[ModelCard(id=config.model_name, created=started)])

    @app.get("/v1/traces/{trace_id}")
    async def trace(trace_id: str) -> Response:
        found = chat.traces.get(trace_id)
        if found is None:
            return ApiError(
                404,
                f"There is no trace {trace_id!r}; the latest {KEPT_TRACES} are kept.",
                code="trace_not_found",
            ).response()
        return JSONResponse(found.model_dump(mode="json"))

    @app.get("/healthz")
    async def healthz() -> Response:
        try:
            generator, judge = await asyncio.wait_for(searcher.fingerprints(), HEALTH_TIMEOUT_S)
        except TimeoutError:
            return ApiError(503, "A model replica does not answer.", code="unavailable").response()
        except Exception as error:
            return as_api_error(error).response()
        return JSONResponse(Health(generator=generator, judge=judge).model_dump())

    add_page(app, config, defaults)
    return app


class Gateway:
    """The ingress deployment; one replica, because the traces are in its memory."""

    def __init__(
        self, config: ServeConfig, defaults: SearchConfig, searcher: DeploymentHandle
    ) -> None:
        self._parts = config, defaults, HandleSearcher(searcher)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return http_app(*self._parts)
