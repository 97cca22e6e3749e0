"""Simulated replicas of the generator and the judge, on a simulated clock."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from stagebeam.capacity.costs import GeneratorCosts

Action = Callable[[float], None]


class Clock:
    """Calls what is due, in order; of what is due at once, what was told first."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Action]] = []
        self._number = count()

    def at(self, when: float, action: Action) -> None:
        """Call `action` with the time, `when` it is."""
        heapq.heappush(self._due, (when, next(self._number), action))

    def run(self, until: float) -> None:
        """Until nothing is due before `until`."""
        while self._due and self._due[0][0] <= until:
            self.now, _, action = heapq.heappop(self._due)
            action(self.now)
        self.now = until


@dataclass(slots=True, eq=False)
class Call:
    """A generator's call: one row a candidate."""

    lengths: Sequence[int]  # tokens
    begin_s: float  # to read what the replica has not read yet
    then: Action
    live: int = 0


class GeneratorReplica:
    """A continuous batch, as `inference.transformers_engine` runs it: between passes the oldest
    waiting calls join while their rows fit, finished rows leave at once, a prompt that is read
    holds the others up.

    Only passes after which something changes are looked at: between two such, all cost the same.
    """

    def __init__(self, clock: Clock, costs: GeneratorCosts) -> None:
        self._clock, self._costs = clock, costs
        self._waiting: deque[Call] = deque()
        self._rows: list[tuple[int, int, Call]] = []  # by the pass after which they end
        self._number = count()
        self._idle, self._turn_number = True, 0
        self._passes = 0  # before this stretch
        self._began = self._pass_s = 0.0
        self.calls = 0  # waiting or decoding
        self._busy_s = 0.0  # before this stretch
        self._row_seconds = 0.0

    def ask(self, call: Call) -> None:
        """Let it wait; `then` is called when its last row has ended."""
        call.live = len(call.lengths)
        self.calls += 1
        self._waiting.append(call)
        if self._idle:
            self._idle = False
            self._turn(self._clock.now, 0)
        elif len(self._waiting) == 1 and self._fits(call):
            passed = math.floor((self._clock.now - self._began) / self._pass_s) + 1
            if passed < self._rows[0][0] - self._passes:
                self._turn_after(max(1, passed))

    def busy_s(self) -> float:
        """Seconds that it has worked by now."""
        return self._busy_s + (0.0 if self._idle else self._clock.now - self._began)

    def row_seconds(self) -> float:
        """Seconds that rows have decoded by now, of all rows together."""
        stretch = max(0.0, self._clock.now - self._began)
        return self._row_seconds + len(self._rows) * stretch

    def _fits(self, call: Call) -> bool:
        return not self._rows or len(self._rows) + len(call.lengths) <= self._costs.max_rows

    def _turn_after(self, passes: int) -> None:
        self._turn_number += 1
        number = self._turn_number

        def turn(now: float) -> None:
            if number == self._turn_number:  # else something changed earlier
                self._turn(now, passes)

        self._clock.at(self._began + passes * self._pass_s, turn)

    def _turn(self, now: float, passed: int) -> None:
        """So many passes of this stretch are done: rows leave, calls join, the next one begins."""
        self._passes += passed
        self._busy_s += passed * self._pass_s
        self._row_seconds += passed * self._pass_s * len(self._rows)
        while self._rows and self._rows[0][0] <= self._passes:
            call = heapq.heappop(self._rows)[2]
            call.live -= 1
            if not call.live:
                self.calls -= 1
                self._clock.at(now, call.then)
        reading = 0.0
        while self._waiting and self._fits(self._waiting[0]):
            call = self._waiting.popleft()
            reading += call.begin_s
            for length in call.lengths:
                ends = self._passes + length
                heapq.heappush(self._rows, (ends, next(self._number), call))
        self._busy_s += reading
        self._idle = not self._rows
        if not self._idle:
            self._began = now + reading
            self._pass_s = self._costs.pass_s + self._costs.row_s * len(self._rows)
            self._turn_after(self._rows[0][0] - self._passes)


class JudgeReplica:
    """One round after another, in the order in which they came."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._free_at = 0.0
        self._asked_s = 0.0

    def ask(self, seconds: float, then: Action) -> None:
        """Read a round for so long; `then` is called afterwards."""
        self._free_at = max(self._free_at, self._clock.now) + seconds
        self._asked_s += seconds
        self._clock.at(self._free_at, then)

    def busy_s(self) -> float:
        """Seconds that it has worked by now."""
        return self._asked_s - max(0.0, self._free_at - self._clock.now)
