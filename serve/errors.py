"""Errors as the OpenAI API words them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastapi.responses import JSONResponse
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.requests import ClientDisconnect

from serve.handles import DrainingError, RefusedError
from serve.visitor import request_id

RETRY_AFTER_S = 5

_logger = logging.getLogger("ray.serve")


class ApiError(Exception):
    """What the client is told: an HTTP status and one sentence."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, dict[str, str | None]]:
        return {
            "error": {
                "message": self.message,
                "type": kind_of(self.status),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_AFTER_S)} if self.status == 503 else {}
        return JSONResponse(
            self.body(), status_code=self.status, headers={**headers, **self.headers}
        )


def kind_of(status: int) -> str:
    """The `type` of an error, in OpenAI's words."""
    if status == 429:
        return "requests"
    return "invalid_request_error" if status < 500 else "server_error"


def as_api_error(error: Exception) -> ApiError:
    """What to tell the client about `error`; what nobody foresaw is logged and stays here."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RefusedError):
        return ApiError(400, str(error), param="messages")
    if isinstance(error, ClientDisconnect):
        return ApiError(400, "The request was broken off.")
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, BackPressureError):
        return ApiError(503, "The server is busy; try again later.", code="overloaded")
    if isinstance(cause, DrainingError):
        return ApiError(503, "The server is being stopped; try again later.", code="draining")
    if isinstance(cause, DeploymentUnavailableError | RayActorError):
        return ApiError(503, "A model replica is down; try again later.", code="unavailable")
    _logger.error("A request failed; request_id=%s", request_id.get(), exc_info=error)
    return ApiError(500, "The server failed to answer; its log says why.", code="internal_error")
