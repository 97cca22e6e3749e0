"""Every call to an endpoint, on disk before its reply is used: `calls.jsonl`.

The first line holds the settings that shape the replies. Each request then has a line when it is
sent and one when it ends, with the reply or the cause of its failure. A request with no second
line was in flight when the job was killed: whether it was paid for is not known, so the most that
it can have cost counts as spent.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from io import BufferedRandom
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NAME = "calls.jsonl"


@dataclass(frozen=True, slots=True)
class Reply:
    """What an endpoint answered. `reasoning` is the field of that name, empty if there is none."""

    content: str
    reasoning: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cost: float


@dataclass
class Totals:
    """Over the life of the folder, not of one run."""

    requests: int = 0
    replies: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # by cause
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0  # of the replies
    unsure: int = 0  # requests that may have been paid for without a reply
    unsure_cost: float = 0.0  # the most that those can have cost
    killed: int = 0  # of `unsure`, those that were in flight when a run was killed

    @property
    def spent(self) -> float:
        """At most this much."""
        return self.cost + self.unsure_cost


class Journal:
    """One process at a time has it open."""

    def __init__(self, folder: Path, settings: dict[str, str], *, fresh: bool = False) -> None:
        """Open or begin the journal of a folder; `fresh` empties it.

        Raises ValueError if another process has it open, if it was begun with other settings, or
        if it is damaged elsewhere than in its last line.
        """
        self._path = folder / NAME
        folder.mkdir(parents=True, exist_ok=True)
        # "a": whatever else goes wrong, nothing that was paid for is overwritten.
        self._file: BufferedRandom = self._path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._places: dict[str, int] = {}  # fingerprint -> where its reply's line begins
            self._open: dict[int, float] = {}  # number -> most that it can cost
            self._last = 0
            self.totals = Totals()
            if fresh:
                self._file.truncate(0)
            self._load(settings)
        except BlockingIOError:
            self._file.close()
            raise ValueError(f"Another process is annotating into {folder}.") from None
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def find(self, fingerprint: str) -> Reply | None:
        """The reply to a call that was made before."""
        if fingerprint not in self._places:
            return None
        self._file.seek(self._places[fingerprint])
        return Reply(**json.loads(self._file.readline())["reply"])

    def sent(self, fingerprint: str, key: str, most: float) -> int:
        """Note a request about to be made, and the most that it can cost; returns its number."""
        number = self._last + 1
        # A killed process loses no line that was flushed; only the machine's end would.
        self._append({"sent": number, "call": fingerprint, "key": key, "most": most})
        self._count_sent(number, most)
        return number

    def replied(self, number: int, fingerprint: str, reply: Reply) -> None:
        """Keep a reply; it is on the disk when this returns."""
        line = {"replied": number, "call": fingerprint, "reply": asdict(reply)}
        place = self._append(line, sync=True)
        self._count_reply(number, fingerprint, reply, place)

    def failed(self, number: int, cause: str, *, unsure: bool) -> None:
        """Note that no usable reply came; `unsure`: it may have been paid for all the same."""
        self._append({"failed": number, "cause": cause, "unsure": unsure})
        self._count_failure(number, cause, unsure)

    def _append(self, line: dict[str, Any], *, sync: bool = False) -> int:
        place = self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        if sync:
            # In the event loop: a few milliseconds beside a call's seconds, and order is kept.
            os.fsync(self._file.fileno())
        return place

    def _load(self, settings: dict[str, str]) -> None:
        self._file.seek(0)
        place = 0
        for number, line in enumerate(iter(self._file.readline, b""), start=1):
            if not line.endswith(b"\n"):  # torn off by a kill
                self._file.truncate(place)
                break
            try:
                self._replay(json.loads(line), place, settings)
            except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError):
                raise ValueError(f"Line {number} of {self._path} is damaged.") from None
            place += len(line)
        if place == 0:
            self._append({"schema_version": 1, "settings": settings}, sync=True)
        self.totals.killed = len(self._open)
        for most in self._open.values():
            self._count_unsure(most)
        self._open = {}

    def _replay(self, line: dict[str, Any], place: int, settings: dict[str, str]) -> None:
        if "replied" in line:
            self._count_reply(line["replied"], line["call"], Reply(**line["reply"]), place)
        elif "failed" in line:
            self._count_failure(line["failed"], line["cause"], line["unsure"])
        elif "sent" in line:
            self._count_sent(line["sent"], line["most"])
        else:
            self._compare(line["settings"], settings)

    def _compare(self, begun: dict[str, str], wanted: dict[str, str]) -> None:
        for name, value in wanted.items():
            if begun.get(name) != value:
                raise ValueError(
                    f"{self._path.parent} was begun with {name} {begun.get(name)}, the recipe now "
                    f"has {value}: name another output_dir, or start over with --fresh."
                )

    def _count_sent(self, number: int, most: float) -> None:
        self._last = number
        self._open[number] = most
        self.totals.requests += 1

    def _count_reply(self, number: int, fingerprint: str, reply: Reply, place: int) -> None:
        del self._open[number]
        self._places[fingerprint] = place
        self.totals.replies += 1
        self.totals.prompt_tokens += reply.prompt_tokens
        self.totals.completion_tokens += reply.completion_tokens
        self.totals.cost += reply.cost

    def _count_failure(self, number: int, cause: str, unsure: bool) -> None:
        most = self._open.pop(number)
        self.totals.failed[cause] += 1
        if unsure:
            self._count_unsure(most)

    def _count_unsure(self, most: float) -> None:
        self.totals.unsure += 1
        self.totals.unsure_cost += most
