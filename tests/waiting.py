"""Waiting for what comes when it comes, on machines that may be busy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(true: Callable[[], T], seconds: float = 300, every: float = 0.2) -> T:
    """What `true` gives once that is true."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f"not within {seconds:.0f} s"
        time.sleep(every)
    return found
