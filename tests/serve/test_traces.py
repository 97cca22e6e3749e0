"""Where gateways keep traces: an answer does not depend on it."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError

from serve import traces
from serve.traces import TraceStore
from stagebeam.search.trace import Trace

TRACE: Any = SimpleNamespace(id="t-1")


def shared(put: Any) -> TraceStore:
    """A store behind a handle whose calls go as `put` says."""
    return TraceStore(SimpleNamespace(put=SimpleNamespace(remote=put)))  # type: ignore[arg-type]


async def test_an_answer_does_not_fail_where_its_trace_cannot_be_kept(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*what: object) -> None:
        raise ActorUnavailableError("The actor is unavailable.", b"0" * 16)

    async def silent(*what: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(traces, "_PUT_S", 0.05)
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    for put in (gone, silent):
        caplog.clear()
        await shared(put).put("reply", TRACE)
        assert "The trace is not kept" in caplog.text


async def test_a_fault_of_ours_is_not_hidden() -> None:
    async def wrong(*what: object) -> Trace:
        raise TypeError("put() takes another argument")

    with pytest.raises(TypeError, match="another argument"):
        await shared(wrong).put("reply", TRACE)
