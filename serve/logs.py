"""Lines of JSON in Serve's log files, each with the trace that it is about.

Serve writes the `request_id` of a line, which all calls of one HTTP request share, into whatever
process they come. Which trace a request is about is told to each process by those calls.
"""

from __future__ import annotations

import logging
from collections import OrderedDict

from ray.serve.context import _get_serve_request_context
from ray.serve.schema import LoggingConfig

LOGGING = LoggingConfig(encoding="JSON", enable_access_log=True)
_REMEMBERED = 10_000  # requests


class _WithTrace(logging.Filter):
    """Names the trace in lines of a request that is about one."""

    def __init__(self) -> None:
        super().__init__()
        self.traces: OrderedDict[str, str] = OrderedDict()  # by request

    def filter(self, record: logging.LogRecord) -> bool:
        trace_id = self.traces.get(getattr(record, "request_id", ""))
        if trace_id is not None:
            record.trace_id = trace_id
        return True


_with_trace = _WithTrace()


def about(trace_id: str) -> None:
    """The request under way is about this trace, in all that this process logs of it from here."""
    traces = _with_trace.traces
    traces[_get_serve_request_context().request_id] = trace_id
    while len(traces) > _REMEMBERED:
        traces.popitem(last=False)


def set_up() -> None:
    """In a replica: name the trace in each line, and write the library's lines to the same file."""
    library = logging.getLogger("stagebeam")
    library.setLevel(logging.INFO)
    for handler in logging.getLogger("ray.serve").handlers:
        handler.addFilter(_with_trace)  # after Serve's own, which name the request
        library.addHandler(handler)
    library.propagate = not library.handlers
