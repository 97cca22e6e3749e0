"""Calls that are under way at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from typing import Any, TypeVar

from stagebeam.inference.types import Usage

_T = TypeVar("_T")


async def gathered(calls: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """All results, in order; the first call that fails ends the others."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def at_once(usages: Iterable[Usage]) -> Usage:
    """What calls cost together that did not wait for one another."""
    counted = list(usages)
    passes = max((usage.sequential_passes for usage in counted), default=0)
    return replace(sum(counted, Usage()), sequential_passes=passes)
