"""Whose work a call to an engine is, and how many questions a replica works for."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serve import logs, meters
from serve.scaling import QUESTIONS


@dataclass(frozen=True, slots=True)
class Ticket:
    """Goes along with each call that a search makes."""

    search: str  # differs from search to search, also where they ask the same
    trace_id: str  # for logs
    share: float = 1.0  # of the search's work at this moment, where several calls divide it


class Questions:
    """Questions that a replica works for: each once, however many calls of it are under way, and
    only its share where other replicas work for it at the same time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._shares: dict[str, list[float]] = defaultdict(list)
        self._clock = clock
        self._reported_at = self._changed_at = clock()
        self._question_seconds = 0.0  # since the last report

    @contextmanager
    def counted(self, ticket: Ticket | None) -> Iterator[None]:
        """While a call is answered. Calls without a ticket are nobody's question."""
        if ticket is None:
            yield
            return
        logs.about(ticket.trace_id)
        self._add_up()
        self._shares[ticket.search].append(ticket.share)
        try:
            yield
        finally:
            self._add_up()
            self._shares[ticket.search].remove(ticket.share)
            if not self._shares[ticket.search]:
                del self._shares[ticket.search]

    @property
    def count(self) -> float:
        return sum(min(1.0, sum(shares)) for shares in self._shares.values())

    def reported(self) -> dict[str, float]:
        """For the autoscaler, and for who watches: the mean since the last report. Questions that
        came together go from stage to stage in step, and a look now and then would see all or
        none of them."""
        self._add_up()
        mean = self._question_seconds / max(self._changed_at - self._reported_at, 1e-9)
        self._reported_at, self._question_seconds = self._changed_at, 0.0
        meters.worked_for(mean)
        return {QUESTIONS: mean}

    def _add_up(self) -> None:
        now = self._clock()
        self._question_seconds += self.count * (now - self._changed_at)
        self._changed_at = now
