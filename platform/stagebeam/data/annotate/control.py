"""What holds calls back: a stop for all of them, the rate limits and the spending limit."""

from __future__ import annotations

import asyncio
import time


class StoppedError(Exception):
    """The job is ending; the call was not made."""


class Stop:
    """Ends a job in order: calls in flight are finished, no new one is made."""

    def __init__(self) -> None:
        self.reason: str | None = None  # one sentence, once it is set
        self._event = asyncio.Event()

    def set(self, reason: str) -> None:
        """The first reason stays."""
        if self.reason is None:
            self.reason = reason
            self._event.set()

    def check(self) -> None:
        """Raises StoppedError once the stop is set."""
        if self.reason is not None:
            raise StoppedError

    async def sleep(self, seconds: float) -> None:
        """Raises StoppedError as soon as the stop is set."""
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except TimeoutError:
            return
        raise StoppedError


class Pace:
    """Requests and tokens a minute, spread evenly: a limit holds over every stretch of time."""

    def __init__(self, requests: float | None, tokens: float | None, stop: Stop) -> None:
        self._seconds_a_request = 60 / requests if requests else 0.0
        self._seconds_a_token = 60 / tokens if tokens else 0.0
        self._stop = stop
        self._order = asyncio.Lock()  # first come, first served
        self._request_at = self._token_at = self._resume_at = 0.0

    async def turn(self, tokens: float) -> None:
        """Wait until a request of about so many tokens may begin.

        Raises StoppedError if the job ends meanwhile.
        """
        async with self._order:
            while (wait := self._next() - time.monotonic()) > 0:
                await self._stop.sleep(wait)
            self._stop.check()
            now = time.monotonic()
            self._request_at = now + self._seconds_a_request
            self._token_at = max(now, self._token_at) + tokens * self._seconds_a_token

    def _next(self) -> float:
        return max(self._request_at, self._token_at, self._resume_at)

    def correct(self, tokens: float) -> None:
        """A request took so many tokens more (or, below 0, fewer) than was said at its turn."""
        self._token_at += tokens * self._seconds_a_token

    def pause(self, seconds: float) -> None:
        """Nothing begins for so long: the endpoint asked for it."""
        self._resume_at = max(self._resume_at, time.monotonic() + seconds)


class Budget:
    """The spending limit. The most that a call can cost is set aside before it is made."""

    def __init__(self, limit: float | None, spent: float) -> None:
        self._limit = limit
        self._spent = spent
        self._reserved = 0.0
        self._calls = 0
        self._changed = asyncio.Condition()

    async def reserve(self, most: float) -> bool:
        """Set `most` aside, when calls in flight have settled if need be; False if there is no
        such sum left."""
        async with self._changed:
            while self._limit is not None and self._spent + self._reserved + most > self._limit:
                if not self._calls:
                    return False
                await self._changed.wait()
            self._reserved += most
            self._calls += 1
            return True

    def __str__(self) -> str:
        return f"{self._spent:.4f} of {self._limit} is spent or may have been"

    async def settle(self, most: float, spent: float) -> None:
        """Give back what was set aside and book what the call did cost."""
        async with self._changed:
            self._calls -= 1
            self._reserved = self._reserved - most if self._calls else 0.0
            self._spent += spent
            self._changed.notify_all()
