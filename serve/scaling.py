"""How many replicas an engine's deployment has: by questions, not by calls.

Serve copies this module to its controller by value, so it imports nothing of ours.
"""

from __future__ import annotations

from typing import Any

from ray.serve.config import AutoscalingContext

# What an engine's replica reports under this name (`serve/counting.py`).
QUESTIONS = "questions"


def by_questions(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Replicas wanted: questions worked for, over the target of one replica.

    Serve applies bounds and delays afterwards, and has averaged what replicas report over its
    look-back. Calls for which no replica had room yet count as a question each.
    """
    reported = (context.aggregated_metrics or {}).get(QUESTIONS, {})
    questions = sum(reported.values()) + (context.total_queued_requests or 0.0)
    assert context.config is not None, "of a deployment that scales"
    return questions / context.config.target_ongoing_requests, {}
