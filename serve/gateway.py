"""The HTTP interface: OpenAI's chat completions, models, traces, health.

`http_app` is a plain FastAPI application over anything that searches; `Gateway` is the Serve
deployment that gives it the searcher's handle.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Protocol

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from serve import logs
from serve.errors import ApiError, as_api_error
from serve.handles import HandleSearcher
from serve.protocol import ChatRequest, Health, ModelCard, ModelList
from serve.reading import parse_chat, read_body, to_prompt, to_settings
from serve.replies import EventStream, completion, event
from serve.traces import KEPT_TRACES, TraceStore
from stagebeam.inference.types import Prompt
from stagebeam.recipe import SearchConfig, ServeConfig
from stagebeam.search import SearchSettings
from stagebeam.search.trace import StageTrace, Trace

HEALTH_TIMEOUT_S = 10.0

_PAGE = """<!doctype html><title>{model}</title>
<p>{model} answers at <code>/v1/chat/completions</code>. See docs/serving.md.</p>
"""


class Searcher(Protocol):
    """What the interface needs: `HandleSearcher` in service."""

    def search(
        self, prompt: Prompt, settings: SearchSettings
    ) -> AsyncGenerator[StageTrace | Trace]: ...

    async def fingerprints(self) -> tuple[str, str]: ...


class Chat:
    """Answers one POST body after another."""

    def __init__(
        self, config: ServeConfig, defaults: SearchConfig, searcher: Searcher, traces: TraceStore
    ) -> None:
        self._config, self._defaults, self._searcher = config, defaults, searcher
        self.traces = traces

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
        # An error before the first decision still gets its own HTTP status.
        first = await anext(found)
        if chat.stream:
            events = self._events(chat, reply_id, first, found)
            return StreamingResponse(events, media_type="text/event-stream")
        return JSONResponse(await self._whole(chat, reply_id, first, found))

    async def _whole(
        self,
        chat: ChatRequest,
        reply_id: str,
        first: StageTrace | Trace,
        found: AsyncGenerator[StageTrace | Trace],
    ) -> dict[str, object]:
        async with aclosing(found):
            *_, item = [first, *[later async for later in found]]
        assert isinstance(item, Trace), "a search ends with its trace"
        await self.traces.put(reply_id, item)
        return completion(reply_id, chat.model, item, include_trace=chat.search.include_trace)

    async def _events(
        self,
        chat: ChatRequest,
        reply_id: str,
        first: StageTrace | Trace,
        found: AsyncGenerator[StageTrace | Trace],
    ) -> AsyncIterator[bytes]:
        stream = EventStream(reply_id, chat.model)
        yield stream.opened()
        try:
            async with aclosing(found):
                async for item in _chain(first, found):
                    if isinstance(item, StageTrace):
                        for piece in stream.decided(item):
                            yield piece
                        continue
                    await self.traces.put(reply_id, item)
                    for piece in stream.closed(
                        item,
                        include_usage=bool(
                            chat.stream_options and chat.stream_options.include_usage
                        ),
                        include_trace=chat.search.include_trace,
                    ):
                        yield piece
        except Exception as error:  # the status is sent already, so the stream says what happened
            yield event(as_api_error(error).body())


async def _chain(
    first: StageTrace | Trace, rest: AsyncGenerator[StageTrace | Trace]
) -> AsyncIterator[StageTrace | Trace]:
    yield first
    async for item in rest:
        yield item


def http_app(
    config: ServeConfig,
    defaults: SearchConfig,
    searcher: Searcher,
    traces: TraceStore | None = None,
) -> FastAPI:
    """The routes. Every error has OpenAI's shape, whatever raised it."""
    app = FastAPI(title=config.model_name, docs_url=None, redoc_url=None, openapi_url=None)
    chat = Chat(config, defaults, searcher, traces or TraceStore())
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
        found = await chat.traces.get(trace_id)
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

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return _PAGE.format(model=config.model_name)

    return app


class Gateway:
    """The ingress deployment; several replicas share a store of traces."""

    def __init__(
        self,
        config: ServeConfig,
        defaults: SearchConfig,
        searcher: DeploymentHandle,
        traces: DeploymentHandle | None = None,
    ) -> None:
        logs.set_up()
        self._parts = config, defaults, HandleSearcher(searcher), TraceStore(traces)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return http_app(*self._parts)
