"""Which replica of an engine gets a call: the question's own, or the next ones for its parts.

Serve copies this module to wherever handles are by value: what it shares with the rest of that
process is imported where it is used.
"""

from __future__ import annotations

from ray.serve._private.common import RequestMetadata
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import ReplicaID, RunningReplica

_PART = "@"


def session_id(question_key: str, part: int) -> str:
    """What a handle is given to route by."""
    return f"{question_key}{_PART}{part}"


class QuestionRouter(ConsistentHashRouter):
    """Part 0 of a question goes to the replica that its key hashes to, part 1 to the next on the
    ring, and so on: as many parts as there are replicas meet on none. When a replica is gone, what
    was its own goes to the next on the ring, and nothing else moves."""

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Note who is there, for whoever divides questions in this process."""
        from serve.live import note

        super().update_replicas(replicas)
        names = frozenset(replica.replica_id.unique_id for replica in replicas)
        note(self._deployment_id.name, names)

    def _lookup_ranked_replicas(self, routing_key: str) -> list[ReplicaID]:
        question, _, part = routing_key.partition(_PART)
        ranked = super()._lookup_ranked_replicas(question)
        turn = int(part or 0) % max(1, len(ranked))
        return ranked[turn:] + ranked[:turn]

    def _fulfill_next_pending_request(
        self, replica: RunningReplica, request_metadata: RequestMetadata | None = None
    ) -> None:
        """Serve looks a waiting call up by its request's id, which all calls of one search share:
        of two that are routed at once, one would wait for ever. Here it is known by itself."""
        for pending in self._pending_requests_to_fulfill:
            if pending.metadata is request_metadata and not pending.future.done():
                self._record_queue_wait_time(pending)
                pending.future.set_result(replica)
                self._remove_pending_request_from_indices(pending)
                return
