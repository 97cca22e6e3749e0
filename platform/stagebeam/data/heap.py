"""Memory that is freed is kept for the next allocation instead of going back to the system."""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MOST_MMAP_THRESHOLD = 32 << 20  # bytes; glibc takes no more
_KEPT = 1 << 30  # bytes


def keep_freed_memory() -> None:
    """For a process that makes arrays of megabytes over and over. By default glibc may give each
    back when it is freed, and the next one is a thousand page faults: a quarter of the time that
    decoding, resizing and tiling a photograph takes. Does nothing where there is no glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _MOST_MMAP_THRESHOLD)
        mallopt(_TRIM_THRESHOLD, _KEPT)
