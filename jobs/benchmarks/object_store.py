"""What lies in the object store of this node while something runs."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import ray
from ray._private.internal_api import node_stats

_EVERY_S = 0.1


class ObjectStore:
    """Asks the raylet for its store, from entering to leaving; a Ray session must be there."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self.spilled_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        node = ray.nodes()[0]
        where = (node["NodeManagerAddress"], node["NodeManagerPort"])
        while not self._ended.wait(_EVERY_S):
            store = node_stats(*where, include_memory_info=False).store_stats
            self.peak_bytes = max(self.peak_bytes, store.object_store_bytes_used)
            self.spilled_bytes = store.spilled_bytes_total
