"""How much one API key may ask: requests in a minute, and questions at the same time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from serve.errors import RETRY_AFTER_S, ApiError
from stagebeam.gateway_config import KeysConfig

_MINUTE_S = 60.0


@dataclass(slots=True)
class _Bucket:
    """A token bucket: holds a minute's requests, and fills as fast as they are allowed."""

    left: float
    at: float  # when `left` was right, seconds


@dataclass(slots=True)
class Rates:
    """What each key has used. In the memory of the one gateway."""

    config: KeysConfig
    clock: Callable[[], float]  # monotonic seconds
    _buckets: dict[str, _Bucket] = field(default_factory=dict)
    _running: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))

    def request(self, name: str) -> dict[str, str]:
        """Count a request; the headers that say what is left.

        Raises ApiError 429, with those headers, where nothing is.
        """
        limit = self.config.requests_per_minute
        if limit is None:
            return {}
        now = self.clock()
        bucket = self._buckets.setdefault(name, _Bucket(limit, now))
        bucket.left = min(limit, bucket.left + (now - bucket.at) * limit / _MINUTE_S)
        bucket.at = now
        allowed = bucket.left >= 1
        bucket.left -= allowed
        headers = {
            "x-ratelimit-limit-requests": str(limit),
            "x-ratelimit-remaining-requests": str(int(bucket.left)),
            "x-ratelimit-reset-requests": f"{(limit - bucket.left) * _MINUTE_S / limit:.3f}s",
        }
        if not allowed:
            wait = math.ceil((1 - bucket.left) * _MINUTE_S / limit)
            raise ApiError(
                429,
                f"The key {name} may make {limit} requests a minute; try again in {wait} seconds.",
                code="rate_limit_exceeded",
                headers={**headers, "Retry-After": str(wait)},
            )
        return headers

    @contextmanager
    def question(self, name: str) -> Iterator[None]:
        """While a question is answered. Raises ApiError 429 where there are too many already."""
        limit = self.config.concurrent_questions
        if limit is not None and self._running[name] >= limit:
            raise ApiError(
                429,
                f"The key {name} may ask {limit} questions at the same time; wait for an answer.",
                code="too_many_questions",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        self._running[name] += 1
        try:
            yield
        finally:
            self._running[name] -= 1
