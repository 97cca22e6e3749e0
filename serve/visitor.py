"""Who is being answered: for log lines, and for the traces that are kept."""

from __future__ import annotations

from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("request_id", default="-")
# The name of the API key, never the key; None where none is wanted.
key_name: ContextVar[str | None] = ContextVar("key_name", default=None)
