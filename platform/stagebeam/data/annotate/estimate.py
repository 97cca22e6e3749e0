"""What a job would ask and cost, without asking."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from stagebeam.annotate_config import AnnotateConfig, EndpointConfig
from stagebeam.data.annotate.client import Call, about_prompt_tokens
from stagebeam.data.annotate.instruct import Captioned, InstructCalls
from stagebeam.data.annotate.output import Rejected
from stagebeam.data.annotate.run import Job
from stagebeam.data.annotate.staged import StagedCalls, questions
from stagebeam.records import Example

SAMPLED_ROWS = 200  # at the start of the input; the rest is taken to be like them


@dataclass(frozen=True, slots=True)
class Estimate:
    """Every call made once, every reply at its longest."""

    rows: int
    sampled: int
    calls: int
    prompt_tokens: int  # about
    completion_tokens: int  # at most
    cost: float
    first: tuple[Call, ...]  # requests of the first row


def estimate(job: Job) -> Estimate:
    """Read some rows and scale up. Raises ValueError if the input is not there."""
    sample = list(islice(job.read(), SAMPLED_ROWS))
    asked = [list(_calls(job, row)) for row in sample if not isinstance(row, Rejected)]
    calls = [pair for row in asked for pair in row]
    prompt = sum(about_prompt_tokens(call, config) for call, config in calls)
    cost = sum(
        about_prompt_tokens(call, config) * config.price_in + call.max_tokens * config.price_out
        for call, config in calls
    )
    scale = job.rows / max(1, len(sample))
    return Estimate(
        rows=job.rows,
        sampled=len(sample),
        calls=round(len(calls) * scale),
        prompt_tokens=round(prompt * scale),
        completion_tokens=round(sum(call.max_tokens for call, _ in calls) * scale),
        cost=cost * scale / 1e6,
        first=tuple(call for call, _ in asked[0]) if asked else (),
    )


def _calls(job: Job, row: Example | Captioned) -> Iterator[tuple[Call, EndpointConfig]]:
    """The row's requests, as if every answer were the standard one."""
    config: AnnotateConfig = job.config
    if isinstance(row, Captioned):
        yield InstructCalls(config, job.wording, job.seed).ask(row, 0), config.teacher
        return
    calls = StagedCalls(config, job.wording, job.seed)
    for question in questions(row):
        earlier = row.messages[: 2 * question.turn]
        yield calls.ask(row, question, earlier, 0), config.teacher
        answer = f"<CONCLUSION> {question.standard_answer} </CONCLUSION>"
        yield calls.check(row, question, answer, 0, 0), config.checker or config.teacher
