"""A file that came in parts, read as one without being joined on disk."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any


class JoinedFile(io.RawIOBase):
    """The parts one after the other; a read ends where a part does, so wrap it in a buffer."""

    def __init__(self, parts: Sequence[Path]) -> None:
        self._files = [part.open("rb", buffering=0) for part in parts]
        self._ends = list(accumulate(part.stat().st_size for part in parts))
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._ends[-1]}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        # bisect_right steps over empty parts.
        number = bisect_right(self._ends, self._position)
        if number == len(self._ends):
            return 0
        file = self._files[number]
        file.seek(self._position - (self._ends[number - 1] if number else 0))
        count = file.readinto(buffer) or 0
        self._position += count
        return count

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()
