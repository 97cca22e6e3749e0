"""Questions sent to a server as people send them: at times that do not wait for its answers.

Arrivals are Poisson at a rate, drawn from a seed. Seconds count from when a question was due, so
that a server (or a client) which falls behind is not flattered by asking less.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

_PATIENCE_S = 120.0

Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of one question. `decisions` is all that a search decided, None for no answer:
    equal for equal answers, whatever they cost."""

    seconds: float  # since the question was due
    status: int  # of HTTP; 0 where the connection failed
    decisions: str | None


def arrivals(rate: float, count: int, seed: int) -> list[float]:
    """Seconds from the start at which questions are due, `rate` of them a second on average."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, count)
    return [float(at) for at in np.cumsum(gaps) - gaps[0]]


async def ask_at(
    url: str, bodies: Sequence[Body], due: Sequence[float], *, patience_s: float = _PATIENCE_S
) -> list[Reply]:
    """Send each body when it is due; the replies in their order.

    Each body's `search` asks for the trace, from which the decisions are read.
    """
    began = time.perf_counter()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
    async with httpx.AsyncClient(limits=limits, timeout=patience_s) as client:

        async def one(body: Body, at: float) -> Reply:
            await asyncio.sleep(max(0.0, at - (time.perf_counter() - began)))
            try:
                reply = await client.post(f"{url}/v1/chat/completions", json=dict(body))
            except httpx.HTTPError:
                return Reply(time.perf_counter() - began - at, 0, None)
            seconds = time.perf_counter() - began - at
            decided = decisions(reply.json()["trace"]) if reply.status_code == 200 else None
            return Reply(seconds, reply.status_code, decided)

        return await asyncio.gather(*(one(b, at) for b, at in zip(bodies, due, strict=True)))


def decisions(trace: Mapping[str, Any]) -> str:
    """The text of an answer and who won it, without what it cost."""
    stages = [
        (
            stage["stage"],
            stage["winner"],
            [candidate["text"] for candidate in stage["candidates"]],
            [(match["a"], match["b"], match["winner"]) for match in stage["matches"]],
        )
        for stage in trace["stages"]
    ]
    return repr((trace["id"], trace["text"], stages))


def percentile(replies: Sequence[Reply], percent: float) -> float:
    """Seconds within which so many in a hundred questions were answered; unanswered ones count
    with the time they took to fail."""
    return float(np.percentile([reply.seconds for reply in replies], percent))
