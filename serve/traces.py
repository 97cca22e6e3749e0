"""The latest traces in memory, found by the reply's id and by their own, under the API key that
asked for them: an id of a trace can be guessed by who knows the question."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict

from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle

from serve import logs
from serve.visitor import key_name
from stagebeam.search.trace import Trace

KEPT_TRACES = 1000
_PUT_S = 2.0  # that an answer waits at most for its trace to be kept

_logger = logging.getLogger("ray.serve")


class KeptTraces:
    """What one process keeps; a deployment of its own where there are several gateways."""

    def __init__(self, size: int = KEPT_TRACES) -> None:
        self._size = size
        self._kept: OrderedDict[tuple[str | None, str], Trace] = OrderedDict()

    def put(self, asker: str | None, reply_id: str, trace: Trace) -> None:
        """Keep it for the key of this name, and let the oldest go."""
        for key in (reply_id, trace.id):
            self._kept[asker, key] = trace
            self._kept.move_to_end((asker, key))
        while len(self._kept) > 2 * self._size:
            self._kept.popitem(last=False)

    def get(self, asker: str | None, key: str) -> Trace | None:
        """The asker's trace, if it is still kept."""
        return self._kept.get((asker, key))


class TraceStore:
    """A gateway's: in its own memory, or in that of the `shared` deployment."""

    def __init__(self, shared: DeploymentHandle | None = None) -> None:
        self._own, self._shared = KeptTraces(), shared

    async def put(self, reply_id: str, trace: Trace) -> None:
        """Returns when every gateway can find it. The log's lines of this request name it.

        Where what they share is away, with its node perhaps, nobody can: an answer does not wait
        for its trace to be kept.
        """
        logs.about(trace.id)
        if self._shared is None:
            self._own.put(key_name.get(), reply_id, trace)
            return
        try:
            async with asyncio.timeout(_PUT_S):
                await self._shared.put.remote(key_name.get(), reply_id, trace)
        except (RayActorError, TimeoutError):
            _logger.warning("The trace is not kept: the traces' replica does not answer.")

    async def get(self, key: str) -> Trace | None:
        """The trace, if it is still kept."""
        if self._shared is None:
            return self._own.get(key_name.get(), key)
        found: Trace | None = await self._shared.get.remote(key_name.get(), key)
        return found
