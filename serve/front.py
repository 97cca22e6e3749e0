"""What every request passes first: its id, its API key, its rate, and a line in the log.

Plain ASGI, so that it sees a streamed reply to its end: a question counts as running until then.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import ApiError, as_api_error
from serve.keys import KeyRing
from serve.rates import Rates
from serve.visitor import key_name, request_id

REQUEST_ID = "x-request-id"
QUESTIONS = "/v1/chat/completions"

_GIVEN_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
_CLIENT_LEFT = 499  # what logs of web servers call it
_logger = logging.getLogger("ray.serve")


class Front:
    """Around the application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: KeyRing | None,
        rates: Rates | None,
        tell_request_id: bool,
    ) -> None:
        """Without `keys` whoever asks may. Serve's proxy tells the request's id by itself."""
        self._app, self._keys, self._rates = app, keys, rates
        self._tell_request_id = tell_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own_id = _request_id(Headers(scope=scope))
        request_id.set(own_id)
        more: dict[str, str] = {REQUEST_ID: own_id} if self._tell_request_id else {}
        key_name.set(None)
        status = 0
        began = time.monotonic()

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in more.items():
                    headers[name] = value
            await send(message)

        try:
            with self._admitted(scope, more):
                await self._app(scope, receive, told)
        except Exception as error:
            if status:  # nothing can be told any more
                raise
            await as_api_error(error).response()(scope, receive, told)
        finally:
            _logger.info(
                "%s %s %d %.3fs request_id=%s key=%s",
                scope["method"],
                # as it was sent, escapes and all: a line stays a line
                scope.get("raw_path", b"").decode("ascii", "replace")[:200],
                status or _CLIENT_LEFT,
                time.monotonic() - began,
                own_id,
                key_name.get() or "-",
            )

    @contextmanager
    def _admitted(self, scope: Scope, more: dict[str, str]) -> Iterator[None]:
        """While the request is answered. Raises ApiError 401 or 429."""
        path = _path(scope)
        if self._keys is None or not path.startswith("/v1/"):
            yield
            return
        name = self._keys.owner(_bearer(Headers(scope=scope)))
        if name is None:
            raise ApiError(
                401,
                "This server wants an API key that it knows: Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        key_name.set(name)
        if self._rates is None:
            yield
            return
        more |= self._rates.request(name)
        if path == QUESTIONS and scope["method"] == "POST":
            with self._rates.question(name):
                yield
        else:
            yield


def _path(scope: Scope) -> str:
    """As the routes see it: an application may be mounted below some prefix."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "").rstrip("/"))


def _bearer(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _request_id(headers: Headers) -> str:
    """The caller's id if it can stand in a log, else a new one."""
    given = headers.get(REQUEST_ID, "")
    return given if _GIVEN_ID.fullmatch(given) else uuid.uuid4().hex
