"""The record of one answer: what was proposed, compared and chosen, and what it cost.

The page, the reports, W&B and the preference data read this and nothing else. One JSON object a
line in `traces.jsonl`; `schema_version` changes with the shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION: Final = 1

DecidedBy = Literal["margin", "majority", "logprob", "rule"]


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


class StageTrace(_Frozen):
    """One decision. `stage` is a stage's name, or ANSWER where whole answers compete."""

    stage: Literal["SUMMARY", "CAPTION", "REASONING", "CONCLUSION", "ANSWER"]
    candidates: tuple[CandidateTrace, ...]
    matches: tuple[MatchTrace, ...] = ()
    winner: int
    usage: UsageTrace


class MessageTrace(_Frozen):
    role: Literal["system", "user", "assistant"]
    text: str


class Trace(_Frozen):
    """One answer, whole."""

    schema_version: Literal[1] = SCHEMA_VERSION
    id: str
    messages: tuple[MessageTrace, ...]
    image_digests: tuple[str, ...] = Field(description="SHA-256 of each image's bytes, hex.")
    method: Literal["greedy", "majority", "best_of_n", "stage_beam"]
    candidates: int = Field(description="N")
    tournament: str
    temperature: float
    top_p: float
    seed: int
    generator: str = Field(description="Fingerprint of the generator's weights and settings.")
    judge: str | None = Field(description="Fingerprint of the judge; None where none was asked.")
    stages: tuple[StageTrace, ...]
    text: str = Field(description="The whole staged answer.")
    conclusion: str | None = Field(description="None where the answer has no whole conclusion.")
    problems: tuple[str, ...] = Field(description="What is wrong with `text`, empty if valid.")
    usage: UsageTrace


def write_traces(path: Path, traces: Iterable[Trace]) -> int:
    """Append traces as JSON lines; returns how many."""
    count = 0
    with path.open("a", encoding="utf-8") as lines:
        for trace in traces:
            lines.write(trace.model_dump_json() + "\n")
            count += 1
    return count


def read_traces(path: Path) -> Iterator[Trace]:
    """Read a trace file. Raises ValueError that names the line which is not a trace."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield Trace.model_validate_json(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number} is not a trace: {error}") from None
