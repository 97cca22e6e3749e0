"""Lines of JSON in Serve's log files, each with the trace that it is about.

Serve itself writes the `request_id` of a line, which all calls of one HTTP request share.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar

from ray.serve.schema import LoggingConfig

LOGGING = LoggingConfig(encoding="JSON", enable_access_log=True)

_trace_id: ContextVar[str] = ContextVar("trace_id", default="")


def about(trace_id: str) -> None:
    """Whatever this task, and those that it starts, log from here on is about this trace."""
    _trace_id.set(trace_id)


class _WithTrace(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if _trace_id.get():
            record.trace_id = _trace_id.get()
        return True


def set_up() -> None:
    """In a replica: name the trace in each line, and write the library's lines to the same file."""
    handlers = logging.getLogger("ray.serve").handlers
    library = logging.getLogger("stagebeam")
    library.setLevel(logging.INFO)
    for handler in handlers:
        if not any(isinstance(known, _WithTrace) for known in handler.filters):
            handler.addFilter(_WithTrace())
        if handler not in library.handlers:
            library.addHandler(handler)
    library.propagate = not library.handlers
