"""LLaVA-Bench's review (Liu et al., arXiv 2304.08485, section 5.1): an answer beside a reference.

The reference was written by a text-only model from a description of the image, and the judge too
reads that description in place of the image. Both answers get one score from 1 to 10 for their
helpfulness, relevance, accuracy and level of detail. Here the judge is asked in both orders and
the scores are averaged, which cancels a preference for a position; the paper asks in one. Where
one of the two replies cannot be read the other alone would bring that preference back, so the row
is left out.
"""

from __future__ import annotations

import re
from statistics import fmean

from stagebeam.evaluation.benchmarks.benchmark import Row
from stagebeam.evaluation.review.judge import Judge, Reply, Review
from stagebeam.evaluation.scorers.conclusion import Mode, Outcome

PROMPT = "llava-bench-1"
LOWEST, HIGHEST = 1.0, 10.0

_NUMBER = r"(\d+(?:\.\d+)?)"
_SCORES = re.compile(rf"{_NUMBER}(?:\s*,\s*|\s+){_NUMBER}")
_FORM = """\
Two assistants were asked a question about an image. You do not see the image; this description \
stands in its place.

[Description of the image]
{caption}

[Question]
{question}

[Answer of assistant 1]
{first}
[End of the answer of assistant 1]

[Answer of assistant 2]
{second}
[End of the answer of assistant 2]

[Your task]
Judge both answers by their helpfulness, relevance, accuracy and level of detail, and give each \
of the two one overall score from 1 (worst) to 10 (best). Which answer stands first means nothing.
Write nothing but two numbers into the first line of your reply: the score of assistant 1, a \
space, the score of assistant 2. From the second line on, explain your scores."""


async def review_pair(row: Row, answer: str | None, mode: Mode, judge: Judge) -> Review:
    """Scores of the answer and of the reference, as shares of 10. No answer (None) gets the lowest
    score whatever the judge says; `mode` makes no difference."""
    reference, said = row.cells["gpt4_ans"].strip(), answer or ""
    first = await judge.ask(_prompt(row, reference, said), PROMPT)
    second = await judge.ask(_prompt(row, said, reference), PROMPT)
    replies = (first, second)
    forward, backward = (read_scores(reply.text or "") for reply in replies)
    if forward is None or backward is None:
        return Review(Outcome(None, 0.0), replies, sum(map(_unread, replies)))
    theirs = fmean((forward[0], backward[1]))
    ours = fmean((forward[1], backward[0])) if said.strip() else LOWEST
    outcome = Outcome(f"{ours:g} to {theirs:g}", ours / HIGHEST, theirs / HIGHEST)
    return Review(outcome, replies)


def read_scores(reply: str) -> tuple[float, float] | None:
    """The two scores that are all of a reply's first line, each from 1 to 10, else None."""
    lines = reply.strip().splitlines() or [""]
    found = _SCORES.fullmatch(lines[0].strip())
    if found is None:
        return None
    first, second = float(found[1]), float(found[2])
    within = all(LOWEST <= score <= HIGHEST for score in (first, second))
    return (first, second) if within else None


def _unread(reply: Reply) -> bool:
    return reply.text is not None and read_scores(reply.text) is None


def _prompt(row: Row, first: str, second: str) -> str:
    return _FORM.format(
        caption=row.cells["caption"].strip(),
        question=row.cells["question"].strip(),
        first=first,
        second=second,
    )
