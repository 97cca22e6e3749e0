"""The record of one answer: what was proposed, compared and chosen, and what it cost.

The page, the reports, W&B and the preference data read this and nothing else. One JSON object a
line in `traces.jsonl`; `schema_version` changes with the shape, and version 1 is read as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stagebeam.storage import Place

SCHEMA_VERSION: Final = 2
READABLE = (1, SCHEMA_VERSION)

StageName = Literal["SUMMARY", "CAPTION", "REASONING", "CONCLUSION", "SENTENCE", "ANSWER", "REST"]
DecidedBy = Literal["margin", "majority", "logprob", "rule"]
Limit = Literal["tokens", "seconds"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class UsageTrace(_Frozen):
    """Counters of `inference.types.Usage`, and the wall clock in seconds."""

    image_encodes: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    sequential_passes: int = 0
    judge_tokens: int = 0
    judge_calls: int = 0
    judge_failures: int = 0
    cache_hits: int = 0
    seconds: float = 0.0


class CandidateTrace(_Frozen):
    """One proposal. `merged_into` is the index of an identical earlier candidate."""

    index: int
    text: str
    tokens: int
    logprob: float
    finish: Literal["stop", "end", "length"]
    valid: bool = Field(description="Has its tags; a candidate without them loses by rule.")
    merged_into: int | None = None
    score: float | None = Field(None, description="A pointwise judge's, in nats.")
    parent: int | None = Field(
        None,
        description="Index of the candidate of the stage before that it continues; None where "
        "it continues that stage's winner.",
    )


class MatchTrace(_Frozen):
    """One comparison, in log-odds that `a` is the better; the orders are (a, b) and (b, a)."""

    round: int
    a: int
    b: int
    forward: float
    backward: float
    margin: float
    winner: int
    decided_by: DecidedBy
    explanation: str | None = Field(None, description="The judge's own words, where asked for.")


class StageTrace(_Frozen):
    """One decision. `stage` is a stage's name, SENTENCE, ANSWER where whole answers compete, or
    REST for what was finished greedily after a limit was reached."""

    stage: StageName
    planned: int = Field(description="N, candidates that could be drawn for it.")
    candidates: tuple[CandidateTrace, ...]
    matches: tuple[MatchTrace, ...] = ()
    winner: int
    usage: UsageTrace


class RetraceTrace(_Frozen):
    """A stage went back to the one before: no candidate's score reached the cutoff."""

    stage: StageName
    back_to: StageName
    best: float | None = Field(description="Highest score so far; None where none has its tags.")
    cutoff: float


class MessageTrace(_Frozen):
    role: Literal["system", "user", "assistant"]
    text: str


class Trace(_Frozen):
    """One answer, whole. `text` is the winners of all stages put together."""

    schema_version: Literal[2] = SCHEMA_VERSION
    id: str
    messages: tuple[MessageTrace, ...]
    image_digests: tuple[str, ...] = Field(description="SHA-256 of each image's bytes, hex.")
    image_turns: tuple[int, ...] = Field(
        (), description="The message that each image stands in; empty: all in the first user's."
    )
    method: Literal["greedy", "majority", "best_of_n", "sentence_beam", "stage_beam", "retrace"]
    candidates: int | dict[str, int] = Field(description="N, or N by stage.")
    tournament: str
    temperature: float
    top_p: float
    seed: int
    early_stop_margin: float | None = None
    budget: Literal["fixed", "adaptive"] = "fixed"
    max_answer_tokens: int | None = None
    max_seconds: float | None = None
    generator: str = Field(description="Fingerprint of the generator's weights and settings.")
    judge: str | None = Field(description="Fingerprint of the judge; None where none was asked.")
    calibration: str | None = Field(None, description="Fingerprint of the cutoffs of `retrace`.")
    stages: tuple[StageTrace, ...]
    retraces: tuple[RetraceTrace, ...] = ()
    limited: Limit | None = Field(
        None, description="The limit that cut a candidate or the search short."
    )
    text: str = Field(description="The whole staged answer.")
    conclusion: str | None = Field(description="None where the answer has no whole conclusion.")
    problems: tuple[str, ...] = Field(description="What is wrong with `text`, empty if valid.")
    usage: UsageTrace


def write_traces(path: Path, traces: Iterable[Trace]) -> int:
    """Append traces as JSON lines, each in one write so that writers do not mix; returns how many.

    Raises ValueError where the file ends in a line that was cut off.
    """
    count = 0
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            raise ValueError(f"{path} ends in a line that was cut off; remove that line first.")
        for trace in traces:
            line = trace.model_dump_json().encode() + b"\n"
            if os.write(file, line) != len(line):
                raise OSError(f"{path} could not be written to its end; the disk may be full.")
            count += 1
    finally:
        os.close(file)
    return count


def read_traces(path: Place) -> Iterator[Trace]:
    """Read a trace file, of this version or an earlier one.

    Raises ValueError with one sentence where there is no file, and for the line that is no trace,
    has an unknown version or was cut off.
    """
    try:
        lines = path.open("rb")
    except FileNotFoundError:
        raise ValueError(f"There is no trace file at {path}.") from None
    with lines:
        for number, line in enumerate(lines, 1):
            where = f"{path}:{number}"
            if not line.endswith(b"\n"):
                raise ValueError(f"{where} was cut off while it was written; remove that line.")
            yield _parse(line, where)


def _parse(line: bytes, where: str) -> Trace:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not a trace: {error}.") from None
    if not isinstance(data, dict):
        raise ValueError(f"{where} is not a trace: it is no JSON object.")
    version = data.get("schema_version")
    if version not in READABLE:
        raise ValueError(
            f"{where} is not a trace that this release reads: its schema_version is {version}, "
            f"not one of {', '.join(map(str, READABLE))}."
        )
    try:
        # As JSON, in which lists are the tuples of the schema.
        return Trace.model_validate_json(json.dumps(_upgraded(data)))
    except (ValidationError, AttributeError, TypeError) as error:
        raise ValueError(f"{where} is not a trace: {_first(error)}.") from None


def _upgraded(data: dict[str, Any]) -> dict[str, Any]:
    """A version 1 trace as version 2: what it did not have yet has its default."""
    if data["schema_version"] != 1:
        return data
    stages = [{"planned": len(stage["candidates"]), **stage} for stage in data.get("stages", ())]
    return {**data, "schema_version": SCHEMA_VERSION, "stages": stages}


def _first(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
