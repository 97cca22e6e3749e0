"""Replies of a judge on disk, each under the fingerprint of all that made it."""

from __future__ import annotations

import json
from pathlib import Path

from stagebeam.evaluation.answers import cut_torn_line


class ReplyCache:
    """A file of JSON lines, appended to as replies arrive; a line that a kill tore is dropped."""

    def __init__(self, path: Path) -> None:
        """Open or begin the file. Raises ValueError for a line that is no reply."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        cut_torn_line(path)
        self._texts: dict[str, str] = {}
        if not path.exists():
            return
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    kept = json.loads(line)
                    self._texts[kept["call"]] = str(kept["text"])
                except (ValueError, KeyError, TypeError):
                    raise ValueError(f"Line {number} of {path} is no judge's reply.") from None

    def find(self, call: str) -> str | None:
        """The text of the reply to the call with this fingerprint."""
        return self._texts.get(call)

    def keep(self, call: str, text: str, **about: str | None) -> None:
        """Keep a reply; `about` is for people who read the file."""
        with self._path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"call": call, **about, "text": text}) + "\n")
        self._texts[call] = text
