"""One call to the generator: N candidates of a stage, gathered and checked."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal

from stagebeam.inference.types import Candidate, GenerateRequest, Generator, Prompt, Usage
from stagebeam.search.seeds import candidate_seed
from stagebeam.search.settings import SearchSettings
from stagebeam.stages import Stage

StageName = Literal["SUMMARY", "CAPTION", "REASONING", "CONCLUSION", "ANSWER"]


class SearchError(RuntimeError):
    """A generator or a judge broke its protocol, so the search cannot go on."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What the generator proposed, by index."""

    candidates: tuple[Candidate, ...]
    usage: Usage
    seconds: float


async def propose(
    generator: Generator,
    prompt: Prompt,
    settings: SearchSettings,
    question_key: str,
    *,
    stage: Stage | None,
    prefix: str = "",
) -> Proposal:
    """N candidates for `stage` after `prefix`, or N whole answers where `stage` is None.

    Whole answers are seeded alike for every method: majority and best_of_n see the same samples.
    Raises SearchError if a seed has no candidate or a log-probability is not a number.
    """
    name, stop = stage_name(stage), (stage or Stage.CONCLUSION).close_tag
    seeds = tuple(candidate_seed(settings.seed, question_key, name, i) for i in range(settings.n))
    request = GenerateRequest(prompt, prefix, (stop,), seeds, settings.sampling)
    started = time.perf_counter()
    found: dict[int, Candidate] = {}  # a stream that was retried may give an index twice
    usage = Usage()
    async for item in generator.propose(request):
        if isinstance(item, Usage):
            usage += item
        else:
            found[item.index] = item
    if set(found) != set(range(settings.n)):
        raise SearchError(
            f"The generator returned {len(found)} of {settings.n} candidates for {name}."
        )
    if not all(math.isfinite(c.logprob) for c in found.values()):
        raise SearchError(f"A candidate for {name} has a log-probability that is not finite.")
    ordered = tuple(found[index] for index in sorted(found))
    return Proposal(ordered, usage, time.perf_counter() - started)


def stage_name(stage: Stage | None) -> StageName:
    """What a stage (None: the whole answer) is called in traces and seeds."""
    return "ANSWER" if stage is None else stage.value
