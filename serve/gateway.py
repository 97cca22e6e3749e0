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
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from serve import logs
from serve.errors import ApiError, as_api_error
from serve.front import QUESTIONS, Front
from serve.handles import HandleEngines, HandleSearcher
from serve.keys import Key, KeyRing
from serve.openapi import document, question_body, replies
from serve.pages import add_page
from serve.protocol import (
    ChatCompletion,
    ChatRequest,
    Health,
    Life,
    ModelCard,
    ModelList,
)
from serve.rates import Rates
from serve.reading import parse_chat, read_body, to_prompt, to_settings
from serve.remote_images import Fetcher
from serve.replies import EventStream, completion, event
from serve.traces import KEPT_TRACES, TraceStore
from stagebeam.inference.types import Prompt
from stagebeam.recipe import ServeConfig
from stagebeam.search import SearchSettings
from stagebeam.search.events import Answered, Event, StageDecided
from stagebeam.search.trace import Trace
from stagebeam.search_config import SearchConfig

# How long the searcher may take to say who its models are before they are asked themselves, and how
# long these may take.
QUEUE_TIMEOUT_S = 2.0
HEALTH_TIMEOUT_S = 10.0


class Engines(Protocol):
    """What there is to know of the models: `HandleEngines` in service."""

    async def fingerprints(self) -> tuple[str, str]: ...


class Searcher(Engines, Protocol):
    """What the interface needs: `HandleSearcher` in service."""

    def search(
        self,
        prompt: Prompt,
        settings: SearchSettings,
        watched: bool = True,
        undivided: bool = False,
    ) -> AsyncGenerator[Event]: ...


class Chat:
    """Answers one POST body after another."""

    def __init__(
        self, config: ServeConfig, defaults: SearchConfig, searcher: Searcher, traces: TraceStore
    ) -> None:
        self._config, self._defaults, self._searcher = config, defaults, searcher
        self._fetcher = Fetcher(config.images) if config.images.allow_hosts else None
        self.traces = traces

    async def reply(self, request: Request) -> Response:
        """Raises whatever went wrong before the first byte of the reply."""
        limits = self._config.limits
        body = await read_body(request, limits)
        # Megabytes of base64 take a while.
        chat = await asyncio.to_thread(parse_chat, body)
        if chat.model != self._config.model_name:
            raise no_model(chat.model, self._config.model_name)
        settings = to_settings(chat, self._defaults, limits)
        prompt = await to_prompt(chat, limits, self._fetcher)
        found = self._searcher.search(
            prompt, settings, watched=bool(chat.stream), undivided=chat.search.undivided
        )
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
        await self.traces.put(reply_id, last.trace)
        return completion(
            reply_id,
            chat.model,
            last.trace,
            include_trace=chat.search.include_trace,
            reasoning=chat.search.reasoning,
        )

    async def _events(
        self, chat: ChatRequest, reply_id: str, begun: list[Event], found: AsyncGenerator[Event]
    ) -> AsyncIterator[bytes]:
        stream = EventStream(
            reply_id,
            chat.model,
            chat.search.reasoning,
            include_events=chat.search.include_events,
        )
        yield stream.opened()
        try:
            async with aclosing(found):
                async for happened in _chain(begun, found):
                    if isinstance(happened, Answered):
                        await self.traces.put(reply_id, happened.trace)
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


def http_app(
    config: ServeConfig,
    defaults: SearchConfig,
    searcher: Searcher,
    traces: TraceStore | None = None,
    keys: tuple[Key, ...] | None = None,
    *,
    engines: Engines | None = None,
    tell_request_id: bool = True,
) -> FastAPI:
    """The routes. Every error has OpenAI's shape, whatever raised it. Without `keys` whoever asks
    may; `engines` are asked for their health past the searcher's queue, where there is one; Serve's
    proxy adds the request's id itself."""
    app = FastAPI(title=config.model_name, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(
        Front,
        keys=None if keys is None else KeyRing(keys),
        rates=None if config.keys is None else Rates(config.keys, time.monotonic),
        tell_request_id=tell_request_id,
    )
    chat = Chat(config, defaults, searcher, traces or TraceStore())
    pulse = Pulse(searcher, engines or searcher)
    card = ModelCard(id=config.model_name, created=int(time.time()))

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}."
        return ApiError(error.status_code, message, headers=error.headers).response()

    @app.post(
        QUESTIONS,
        responses=replies(ChatCompletion, 400, 404, 408, 413, 415, 500, 503, stream=True),
        openapi_extra=question_body(),
        operation_id="createChatCompletion",
    )
    async def completions(request: Request) -> Response:
        """Ask a question."""
        try:
            return await chat.reply(request)
        except Exception as error:
            return as_api_error(error).response()

    @app.get("/v1/models", operation_id="listModels", responses=replies(ModelList))
    async def models() -> Response:
        """The one model."""
        return JSONResponse(ModelList(data=[card]).model_dump())

    @app.get(
        "/v1/models/{model_id:path}",
        operation_id="retrieveModel",
        responses=replies(ModelCard, 404),
    )
    async def model(model_id: str) -> Response:
        """What there is to know of a model."""
        if model_id != card.id:
            return no_model(model_id, card.id).response()
        return JSONResponse(card.model_dump())

    @app.get("/v1/traces/{trace_id}", operation_id="retrieveTrace", responses=replies(Trace, 404))
    async def trace(trace_id: str) -> Response:
        """How one of the latest answers was found, by the reply's id or the trace's own."""
        found = await chat.traces.get(trace_id) if config.limits.traces else None
        if found is None:
            kept = f"the latest {KEPT_TRACES} are kept" if config.limits.traces else "none is shown"
            message = f"There is no trace {trace_id!r}; {kept}."
            return ApiError(404, message, code="trace_not_found").response()
        return JSONResponse(found.model_dump(mode="json"))

    @app.get("/livez", operation_id="alive", responses=replies(Life))
    async def livez() -> Response:
        """Whether this process is alive: for a supervisor that would start it anew."""
        return JSONResponse(Life().model_dump())

    @app.get("/healthz", operation_id="healthy", responses=replies(Health, 503))
    async def healthz() -> Response:
        """Whether questions are answered: for whoever sends them here or elsewhere."""
        try:
            return JSONResponse((await pulse.health()).model_dump())
        except Exception as error:
            return as_api_error(error).response()

    add_page(app, config, defaults)
    described = document(app, config, keyed=keys is not None)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return JSONResponse(described)

    return app


class Pulse:
    """Whether generator and judge answer."""

    def __init__(self, searcher: Searcher, engines: Engines) -> None:
        self._searcher, self._engines = searcher, engines

    async def health(self) -> Health:
        """Raises whatever keeps the models from answering; ApiError 503 where nothing comes back.

        A searcher that turns a call away because of its many questions, or lets it wait behind
        them, is busy: then the models themselves are asked.
        """
        try:
            found = await asyncio.wait_for(self._searcher.fingerprints(), QUEUE_TIMEOUT_S)
            return Health(generator=found[0], judge=found[1])
        except (TimeoutError, BackPressureError):
            pass
        try:
            found = await asyncio.wait_for(self._engines.fingerprints(), HEALTH_TIMEOUT_S)
        except TimeoutError:
            message = "A model replica does not answer."
            raise ApiError(503, message, code="unavailable") from None
        return Health(status="busy", generator=found[0], judge=found[1])


def no_model(asked: str, there: str) -> ApiError:
    """404 for a model that is not the one."""
    return ApiError(
        404,
        f"There is no model {asked!r}; this server has {there!r}.",
        param="model",
        code="model_not_found",
    )


class Gateway:
    """The ingress deployment; several replicas share a store of traces, and each counts the rates
    of its own visitors."""

    def __init__(
        self,
        config: ServeConfig,
        defaults: SearchConfig,
        searcher: DeploymentHandle,
        engines: tuple[DeploymentHandle, DeploymentHandle | None],
        traces: DeploymentHandle | None = None,
        keys: tuple[Key, ...] | None = None,
    ) -> None:
        logs.set_up()
        self._parts = config, defaults, HandleSearcher(searcher), TraceStore(traces), keys
        self._engines = HandleEngines(*engines)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return http_app(*self._parts, engines=self._engines, tell_request_id=False)
