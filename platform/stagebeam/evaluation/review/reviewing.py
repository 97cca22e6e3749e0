"""Every answer of one method to one benchmark, reviewed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from stagebeam.evaluation.answers import AnswerRow
from stagebeam.evaluation.benchmarks.asking import as_given
from stagebeam.evaluation.benchmarks.benchmark import Benchmark, ReviewKind, Row
from stagebeam.evaluation.review import extraction, grading, pairwise
from stagebeam.evaluation.review.judge import Judge, Review
from stagebeam.evaluation.scorers.conclusion import Mode, conclusion_of
from stagebeam.inference.together import gathered

Reviewer = Callable[[Row, str | None, Mode, Judge], Awaitable[Review]]

_REVIEWERS: dict[ReviewKind, Reviewer] = {
    "pair": pairwise.review_pair,
    "grade": grading.grade,
    "extract": extraction.extract,
}
PROMPTS: dict[ReviewKind, str] = {
    "pair": pairwise.PROMPT,
    "grade": grading.PROMPT,
    "extract": extraction.PROMPT,
}


async def review_answers(
    benchmark: Benchmark,
    rows: Mapping[str, Row],
    answers: Sequence[AnswerRow],
    texts: Mapping[str, str],
    mode: Mode,
    judge: Judge,
    on_review: Callable[[Review], None] = lambda review: None,
) -> list[Review]:
    """A review of each answer, in order. `texts` are the whole replies by trace id; an answer that
    failed is reviewed as one that says nothing.

    Raises ValueError where the judge's server fails every single call.
    """
    assert benchmark.review is not None, "its replies need no judge"
    reviewer = _REVIEWERS[benchmark.review]

    async def one(answer: AnswerRow) -> Review:
        text = None if answer.trace_id is None else texts[answer.trace_id]
        if text is not None:
            text = as_given(text) if mode == "compat" else conclusion_of(text)
        review = await reviewer(rows[answer.id], text, mode, judge)
        on_review(review)
        return review

    reviews = await gathered(map(one, answers))
    replies = [reply for review in reviews for reply in review.replies]
    if replies and all(reply.server_failed for reply in replies):
        raise ValueError(f"No answer to {benchmark.name} could be reviewed: {replies[0].error}")
    return reviews


def counts(reviews: Sequence[Review]) -> dict[str, Any]:
    """Replies that were needed, those that say nothing that was asked for, and failed calls with
    their reasons."""
    replies = [reply for review in reviews for reply in review.replies]
    failures = Counter(reply.error for reply in replies if reply.failed)
    return {
        "calls": len(replies),
        "unread": sum(review.unread for review in reviews),
        "failed": failures.total(),
        "failures": dict(failures),
    }
