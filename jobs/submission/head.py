"""The head of a Ray cluster, as one who submits jobs speaks with it.

Ray's client is right about packages and tokens, but it waits for ever for a head that has gone, and
what it raises does not say whether asking again can help. Here it does: `LostError`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient
from tenacity import (
    AsyncRetrying,
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential,
)

T = TypeVar("T")

# Seconds to connect, and without a byte of an answer; a package is stored before the answer.
_CONNECT, _ANSWER, _STORE = 10.0, 30.0, 180.0
PATIENCE = 300.0  # seconds that a head may be away
START_PATIENCE = 60.0  # seconds until a head that has just started takes jobs
# Ray's client puts the address in any of these over the one that it is given.
ADDRESS_VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
# They say of each package and connection how it went.
_TALKATIVE = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
_TOKEN = "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH)"


class LostError(Exception):
    """The head did not answer, or could not just now: asking again may help."""


class UnknownJobError(ValueError):
    """The head knows no such job."""


class Head(JobSubmissionClient):
    """Ray's client with limits on waiting, and errors that say what to do.

    Raises `LostError` where asking again may help, and a ValueError of one sentence otherwise.
    """

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        limits = (_CONNECT, _ANSWER if method == "GET" else _STORE)
        try:
            response = super()._do_request(method, endpoint, timeout=limits, **options)
        except AuthenticationError as error:
            missing = str(error).startswith("Authentication required")
            status = HTTPStatus.UNAUTHORIZED if missing else HTTPStatus.FORBIDDEN
            raise self.unauthorised(status) from None
        except requests.RequestException as error:
            raise LostError(f"{type(error).__name__} at {self._address}{endpoint}") from error
        # A package that is not stored is too large: sending it again would not help.
        if response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR and method != "PUT":
            raise LostError(f"{response.status_code}: {_last_line(response.text)}")
        return response

    def _raise_error(self, r: requests.Response) -> None:
        if r.status_code == HTTPStatus.NOT_FOUND:
            raise self.unknown()
        raise ValueError(f"The head at {self._address} refuses: {_last_line(r.text)}")

    def unknown(self) -> UnknownJobError:
        return UnknownJobError(f"The head at {self._address} knows no such job.")

    def unauthorised(self, status: int) -> ValueError:
        """What to say to one whose token is missing (401) or wrong (403)."""
        if status == HTTPStatus.UNAUTHORIZED:
            return ValueError(f"The head at {self._address} demands a token: set {_TOKEN}.")
        return ValueError(
            f"The head at {self._address} refuses this token: set {_TOKEN} as its operator did."
        )


def connect(address: str) -> Head:
    """The head whose dashboard is at this address.

    Raises ValueError where the address is none, or no head is there that takes us.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(
            f"'{address}' is no address of a head: give that of its dashboard, such as "
            "http://HEAD:8265."
        )
    for name in ADDRESS_VARIABLES:
        os.environ.pop(name, None)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return Head(address)
    except LostError as error:
        raise ValueError(f"No Ray head answers at {address} ({error}).") from None
    except (requests.RequestException, RuntimeError, KeyError):
        raise ValueError(f"What answers at {address} is no Ray head.") from None


def submit(
    head: Head,
    job: str,
    command: str,
    runtime_env: Mapping[str, Any],
    patience: float = START_PATIENCE,
) -> None:
    """Hand over a job under an id of ours, so that one whose answer was lost is not run twice.

    A head that has just started has no agent for some seconds: it is asked again for as long as
    `patience` (seconds). Raises ValueError where it refuses, LostError where it stays away.
    """

    def hand_over() -> None:
        try:
            head.submit_job(entrypoint=command, submission_id=job, runtime_env=dict(runtime_env))
        except (LostError, ValueError):
            # What was lost may be the answer alone; a second time, the head has it already.
            if not _known(head, job):
                raise

    Retrying(**_again(patience))(hand_over)


async def answered(ask: Callable[[], T], patience: float = PATIENCE) -> T:
    """What the head answers, asked again while it is away. Raises LostError after `patience`
    seconds."""

    # in a thread for one request alone: between them Ctrl-C is heard
    return await asked(lambda: asyncio.to_thread(ask), patience)


async def asked(ask: Callable[[], Awaitable[T]], patience: float) -> T:
    """What is answered, asked again after each `LostError`. Raises the last of them after
    `patience` seconds."""

    async def once() -> T:
        return await ask()

    return await AsyncRetrying(**_again(patience))(once)


def _again(patience: float) -> dict[str, Any]:
    return {
        "retry": retry_if_exception_type(LostError),
        "wait": wait_exponential(multiplier=0.5, max=10),
        "stop": stop_after_delay(patience),
        "reraise": True,
    }


def _known(head: Head, job: str) -> bool:
    try:
        head.get_job_info(job)
    except UnknownJobError:
        return False
    return True


def _last_line(text: str) -> str:
    """Of a traceback, what it comes to."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no reason is given"
