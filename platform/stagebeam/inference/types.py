"""What passes between search, engines and judges. Imports neither torch nor Ray.

A call carries all that is needed to answer it: key/value caches and image encodings are found by
hash, and a miss only costs time. So any replica can answer and every retry is safe.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, fields
from typing import Literal, Protocol

from stagebeam.records import Message
from stagebeam.stages import Stage

FinishReason = Literal["stop", "end", "length"]  # stop tag seen, model ended its turn, cut off


@dataclass(frozen=True, slots=True)
class Prompt:
    """The conversation up to the assistant's turn, and its images as encoded bytes.

    `places` names the message before whose text each image stands; left out, all of them stand in
    the first user turn, as in training.
    """

    messages: tuple[Message, ...]
    images: tuple[bytes, ...] = ()
    places: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. A temperature of 0 is greedy. Defaults are the paper's."""

    temperature: float = 0.6
    top_p: float = 0.9
    max_new_tokens: int = 2048


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Continue `prompt` + `prefix` once for each seed, each until the first of `stops`, which is
    kept in the text. Candidates that are not done after `seconds` are cut, as at the length limit.
    """

    prompt: Prompt
    prefix: str
    stops: tuple[str, ...]
    seeds: tuple[int, ...]
    sampling: Sampling
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One continuation. `logprob` is the sum over its tokens, natural log, at temperature 1."""

    index: int  # position of its seed in the request
    text: str  # without the prefix, with the stop tag
    tokens: int
    logprob: float
    finish: FinishReason

    @property
    def mean_logprob(self) -> float:
        return self.logprob / max(self.tokens, 1)


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer cost, in counters that do not depend on the machine. Adds with `+`."""

    image_encodes: int = 0
    prefill_tokens: int = 0  # prompt and prefix tokens really computed, cache hits left out
    decode_tokens: int = 0  # sampled by the generator, over all candidates
    sequential_passes: int = 0  # forward passes that had to wait for one another
    judge_tokens: int = 0
    judge_calls: int = 0
    judge_failures: int = 0  # verdicts that could not be had, and count as ties
    cache_hits: int = 0  # calls that found their prefix's keys and values

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """Compare candidates of one stage (of the whole answer where `stage` is None).

    `pairs` holds indices into `candidates`, so that a pointwise judge scores each text once. With
    `explain`, a sentence is written about each verdict, after it and without effect on it.
    """

    prompt: Prompt
    stage: Stage | None
    prefix: str
    candidates: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    explain: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a pair (a, b) compares: log-odds that a is better, asked as (a, b) and as (b, a).

    Both are given from a's side; a judge without position bias has `forward == backward`.
    """

    forward: float
    backward: float

    @property
    def margin(self) -> float:
        return (self.forward + self.backward) / 2


@dataclass(frozen=True, slots=True)
class Judgement:
    """One verdict for each pair of the request, in its order.

    A pointwise judge also gives the `scores` of the candidates, in nats; a judge that was asked to
    explain and can, one sentence for each pair.
    """

    verdicts: tuple[Verdict, ...]
    usage: Usage
    scores: tuple[float, ...] = ()
    explanations: tuple[str, ...] = ()


class Generator(Protocol):
    """Proposes continuations: candidates as they finish, then the call's usage, last."""

    def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]: ...


class Judge(Protocol):
    """Compares candidates. Raises only where the call itself failed."""

    async def compare(self, request: JudgeRequest) -> Judgement: ...
