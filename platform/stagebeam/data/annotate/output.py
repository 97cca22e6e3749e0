"""What a job leaves in its folder: annotations, images, refused rows, a report.

Rows are written in the order of the input to hidden files, which take their names when the job
ends, in order or early. So a kill leaves no half row: the files of the run before stay, and the
next run writes its own from the journal.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from PIL import Image as PilImage
from pydantic import BaseModel, ConfigDict, Field

from stagebeam.annotate_config import Kind
from stagebeam.data.annotate.checks import Turn
from stagebeam.data.refusal import Refused
from stagebeam.records import Example, Image

STAGED, INSTRUCT = "annotations.jsonl", "annotations.json"
REFUSED, REPORT, IMAGES = "refused.jsonl", "report.json", "images"
_SPEAKERS = {"user": "human", "assistant": "gpt"}


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that is left out, and why."""

    id: str
    fault: str
    reason: str  # one sentence
    row: str = ""  # what could be read of it, where it was the source's

    @classmethod
    def of(cls, refused: Refused) -> Rejected:
        return cls(refused.id, refused.fault, refused.reason, refused.row)


@dataclass(frozen=True, slots=True)
class Row:
    """A finished row in its file's form, and images to go with it by their paths."""

    row: dict[str, Any]
    images: tuple[tuple[str, bytes], ...] = ()


class Report(BaseModel):
    """`report.json`: counts over the life of the folder, not of one run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    complete: bool = Field(description="Every row is annotated or refused.")
    stopped: str | None = Field(description="Why the job ended early, one sentence.")
    kind: Kind
    prompt: str = Field(description="Name, version and digest.")
    model: str
    checker: str | None = Field(description="Model that compares conclusions (staged).")
    rows: int = Field(description="In the input, or under --limit.")
    annotated: int
    refused: dict[str, int] = Field(description="Rows by fault.")
    unusable: dict[str, int] = Field(description="Replies that would not do, by fault.")
    requests: int = Field(description="Sent to the endpoints.")
    replies: int = Field(description="Received and kept.")
    failed: dict[str, int] = Field(description="Requests without a usable reply, by cause.")
    killed: int = Field(description="Requests in flight when a run was killed.")
    prompt_tokens: int
    completion_tokens: int
    cost: float = Field(description="Of the replies.")
    unsure: int = Field(description="Requests that may have been paid for without a reply.")
    unsure_cost: float = Field(description="The most that those can have cost.")


def staged_row(example: Example) -> Row:
    """The LLaVA-CoT form. Images lie under the data set's name and are named by content."""
    folder = _folder(example.source)
    images = tuple((f"{folder}/{_file_name(image)}", image.bytes) for image in example.images)
    paths = [path for path, _ in images]
    row: dict[str, Any] = {"id": example.id}
    if paths:
        row["image"] = paths[0] if len(paths) == 1 else paths
    row["conversations"] = [
        {"from": _SPEAKERS[message.role], "value": message.text} for message in example.messages
    ]
    return Row(row, images)


def instruct_row(id_: str, image: str, turns: tuple[Turn, ...]) -> Row:
    """The LLaVA instruction form: the placeholder of the image leads the first question."""
    conversations = []
    for number, turn in enumerate(turns):
        lead = "<image>\n" if number == 0 else ""
        conversations.append({"from": "human", "value": lead + turn.question})
        conversations.append({"from": "gpt", "value": turn.answer})
    return Row({"id": id_, "image": image, "conversations": conversations})


class Output:
    """Takes rows in any order, by number from 0, and writes them in theirs."""

    def __init__(self, folder: Path, *, array: bool) -> None:
        """`array`: one JSON array instead of a row a line."""
        self._folder, self._array = folder, array
        if not array:  # a source needs the folder even where no row has an image
            (folder / IMAGES).mkdir(parents=True, exist_ok=True)
        self._annotations = _Partial(folder / (INSTRUCT if array else STAGED))
        self._refusals = _Partial(folder / REFUSED)
        self._waiting: dict[int, Row | Rejected | None] = {}
        self._next = 0
        self.annotated = 0
        self.refused: Counter[str] = Counter()

    def put(self, number: int, outcome: Row | Rejected | None) -> None:
        """`None` for a row that the end of the job left unfinished."""
        self._waiting[number] = outcome
        while self._next in self._waiting:
            self._write(self._waiting.pop(self._next))
            self._next += 1

    def _write(self, outcome: Row | Rejected | None) -> None:
        match outcome:
            case Row():
                for path, data in outcome.images:
                    _write_once(self._folder / IMAGES / path, data)
                lead = ("[\n" if self.annotated == 0 else ",\n") if self._array else ""
                self._annotations.write(lead + _json(outcome.row) + ("" if self._array else "\n"))
                self.annotated += 1
            case Rejected():
                row = {"id": outcome.id, "fault": outcome.fault, "reason": outcome.reason}
                self._refusals.write(
                    _json(row | ({"row": outcome.row} if outcome.row else {})) + "\n"
                )
                self.refused[outcome.fault] += 1

    def finish(self, report: Report) -> None:
        """Give the files their names, the report last."""
        assert not self._waiting, "a row that was begun has an outcome"
        if self._array:
            self._annotations.write("\n]\n" if self.annotated else "[]\n")
        self._annotations.finish()
        self._refusals.finish()
        partial = _Partial(self._folder / REPORT)
        partial.write(report.model_dump_json(indent=1) + "\n")
        partial.finish()

    def abandon(self) -> None:
        """Leave the files of the run before as they are."""
        self._annotations.abandon()
        self._refusals.abandon()


class _Partial:
    """A file that takes its name when it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hidden = path.with_name(f".{path.name}.partial")
        self._file: IO[str] = self._hidden.open("w", encoding="utf-8")

    def write(self, text: str) -> None:
        self._file.write(text)

    def finish(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._hidden, self._path)

    def abandon(self) -> None:
        self._file.close()
        self._hidden.unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Remove what a job has left in its folder beside the journal, and nothing else."""
    for name in (STAGED, INSTRUCT, REFUSED, REPORT):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / IMAGES, ignore_errors=True)


def _json(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)


def _write_once(path: Path, data: bytes) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.partial")
    hidden.write_bytes(data)
    os.replace(hidden, path)


def _folder(source: str) -> str:
    """`llava_cot/sqa` as `sqa`: read back, the first folder names the data set again."""
    return re.sub(r"[^\w+.-]+", "-", source.removeprefix("llava_cot/")).strip("-.") or "images"


def _file_name(image: Image) -> str:
    """By content, with the extension that it came with or else its format's."""
    suffix = PurePosixPath(image.path).suffix.lower()
    if not re.fullmatch(r"\.\w{1,5}", suffix):
        with PilImage.open(io.BytesIO(image.bytes)) as opened:
            suffix = f".{(opened.format or 'img').lower()}"
    return hashlib.sha256(image.bytes).hexdigest()[:32] + suffix
