"""The OpenAPI document at /openapi.json: made of the models that requests and replies go through.

Schemas are pydantic's own, put in by hand: the gateway reads bodies itself, to bound them, so that
FastAPI sees neither them nor the errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve.protocol import (
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    ErrorReply,
    Health,
    Life,
    ModelCard,
    ModelList,
)
from stagebeam.recipe import ServeConfig
from stagebeam.search.trace import Trace

Json = dict[str, Any]

_MODELS: Sequence[type[BaseModel]] = (
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    ErrorReply,
    Health,
    Life,
    ModelCard,
    ModelList,
    Trace,
)
_REF = "#/components/schemas/{model}"
_ERRORS = {
    400: "The request is wrong; the message names the field.",
    401: "No API key, or one that this server does not know.",
    404: "There is no such thing here.",
    408: "The body took too long to arrive.",
    413: "The body is too large.",
    415: "The body is said to be something other than JSON.",
    429: "The key's rate is used up; `Retry-After` says when to come back.",
    500: "A fault of the server.",
    503: "The server is busy, or a model does not answer; `Retry-After` says when to come back.",
}
_STREAM = (
    "With `stream: true`, server-sent events: `data: ` and a ChatChunk as JSON, each stage when it "
    "is decided, `data: [DONE]` at the end. An error after the first event comes as an event with "
    "an ErrorReply, after which the stream ends."
)
# What an answer leads to.
_LINKS = {
    "trace": {"operationId": "retrieveTrace", "parameters": {"trace_id": "$response.body#/id"}},
    "model": {"operationId": "retrieveModel", "parameters": {"model_id": "$response.body#/model"}},
}
_SECONDS = {"description": "Seconds.", "schema": {"type": "string", "pattern": "^[0-9]+$"}}
_REQUEST_ID = {
    "description": "The request's own `x-request-id`, or a new one.",
    "schema": {"type": "string"},
}


def replies(model: type[BaseModel], *errors: int, stream: bool = False) -> dict[int | str, Json]:
    """A route's `responses`: a model at 200, and the shape of errors at the other statuses."""
    content: Json = {"application/json": {"schema": _ref(model)}}
    if stream:
        content["text/event-stream"] = {"schema": _event()}
    found: dict[int | str, Json] = {200: {"description": "As asked.", "content": content}}
    if stream:
        found[200] |= {"description": _STREAM, "links": _LINKS}
    return found | {status: _error(status) for status in errors}


def _event() -> Json:
    """Of each event of a stream: until version 3.2 OpenAPI has no better place to say it."""
    told = {"anyOf": [_ref(ChatChunk), _ref(ErrorReply)]}
    data = [
        {"const": "[DONE]"},
        {"contentMediaType": "application/json", "contentSchema": told},
    ]
    return {
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"type": "string", "anyOf": data}},
    }


def _error(status: int) -> Json:
    found: Json = {
        "description": _ERRORS[status],
        "content": {"application/json": {"schema": _ref(ErrorReply)}},
    }
    if status in (429, 503):
        found["headers"] = {"Retry-After": {**_SECONDS, "required": True}}
    if status == 401:
        found["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}, "required": True}}
    return found


def question_body() -> Json:
    """What FastAPI cannot see of POST /v1/chat/completions."""
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref(ChatRequest)}},
        }
    }


def document(app: FastAPI, config: ServeConfig, *, keyed: bool) -> Json:
    """The whole document, with the limits of this server. `keyed`: /v1 wants an API key."""
    found = get_openapi(
        title=app.title,
        version="1",
        summary="Answers about images, searched for in four stages, in OpenAI's chat shape.",
        routes=app.routes,
    )
    _, schemas = models_json_schema([(model, "validation") for model in _MODELS], ref_template=_REF)
    components = {"schemas": schemas["$defs"]}
    _narrow(components["schemas"], config)
    if keyed:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in found["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI's own, which nothing here raises
            if keyed and path.startswith("/v1/"):
                operation["security"] = [{"key": []}]
                operation["responses"] |= {str(status): _error(status) for status in (401, 429)}
            for response in operation["responses"].values():
                response.setdefault("headers", {})["x-request-id"] = _REQUEST_ID
    return {**found, "components": components}


def _narrow(schemas: Json, config: ServeConfig) -> None:
    """Say in the request's schema what this server takes."""
    limits = config.limits
    chat, search = schemas["ChatRequest"]["properties"], schemas["SearchFields"]["properties"]
    chat["model"]["const"] = config.model_name
    chat["messages"]["maxItems"] = limits.max_turns
    for field, most in (
        (chat["max_tokens"], limits.max_new_tokens),
        (chat["max_completion_tokens"], limits.max_new_tokens),
        (search["max_new_tokens"], limits.max_new_tokens),
        (search["max_answer_tokens"], limits.max_answer_tokens),
        (search["max_seconds"], limits.max_seconds),
        (search["max_retraces"], limits.max_retraces),
        (search["candidates"], limits.max_candidates),
    ):
        number = next(form for form in field["anyOf"] if form.get("type") in ("integer", "number"))
        if most is not None:
            number["maximum"] = most
    for field, allowed in (
        (search["method"], limits.methods),
        (search["tournament"], limits.tournaments),
    ):
        if allowed is not None:
            next(form for form in field["anyOf"] if "enum" in form)["enum"] = list(allowed)


def _ref(model: type[BaseModel]) -> Json:
    return {"$ref": _REF.format(model=model.__name__)}
