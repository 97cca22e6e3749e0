"""What one answer may still spend: tokens over all its candidates, and seconds.

While several candidates compete, a quarter of either limit is kept back, so that what the search
leaves undone can still be finished greedily.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from stagebeam.inference.types import Candidate
from stagebeam.search.settings import SearchSettings
from stagebeam.search.trace import Limit

RESERVE = 0.25  # of a limit, kept for finishing
HAND_OVER = 0.9  # of the last seconds: what is cut then still has to arrive


class OutOfBudget(Exception):  # noqa: N818 - no fault: the answer ends with what there is
    """Nothing is left of the answer's limit, so nothing more can be drawn."""

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self.limit = limit


@dataclass(frozen=True, slots=True)
class Share:
    """What each candidate of one call may have. `seconds` is None without a limit."""

    tokens: int
    seconds: float | None


class Allowance:
    """The limits of one answer, from the moment it is made."""

    def __init__(
        self, settings: SearchSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tokens, self._seconds = settings.max_answer_tokens, settings.max_seconds
        self._clock, self._started = clock, clock()
        self._spent = 0

    def spend(self, tokens: int) -> None:
        self._spent += tokens

    def left(self) -> float | None:
        """Seconds until the answer has to be there, 0 or more; None without a limit."""
        if self._seconds is None:
            return None
        return max(0.0, self._seconds - (self._clock() - self._started))

    def share(self, rows: int, longest: int) -> Share:
        """For `rows` candidates of at most `longest` tokens. Raises OutOfBudget."""
        part = 1.0 if rows == 1 else 1 - RESERVE
        tokens, seconds = longest, self.left()
        if self._tokens is not None:
            tokens = min(longest, (int(part * self._tokens) - self._spent) // rows)
            if tokens < 1:
                raise OutOfBudget("tokens")
        if self._seconds is not None and seconds is not None:
            seconds = HAND_OVER * seconds if rows == 1 else seconds - RESERVE * self._seconds
            if seconds <= 0:
                raise OutOfBudget("seconds")
        return Share(tokens, seconds)

    def cut(self, candidate: Candidate, share: Share, longest: int) -> Limit | None:
        """The limit of the answer that cut this candidate, if one did."""
        if candidate.finish != "length" or candidate.tokens >= longest:
            return None
        if self._tokens is not None and candidate.tokens >= share.tokens:
            return "tokens"
        return None if self._seconds is None else "seconds"
