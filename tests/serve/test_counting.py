"""What an engine's deployment is scaled by."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from serve.counting import Questions, Ticket
from serve.scaling import QUESTIONS, by_questions


def test_a_question_counts_once_however_many_calls_of_it_are_under_way() -> None:
    questions = Questions()
    one, other = Ticket("one", "t"), Ticket("other", "t")
    with questions.counted(one), questions.counted(one), questions.counted(other):
        assert questions.count == 2
    assert questions.count == 0


def test_a_question_that_is_divided_counts_once_over_all_replicas() -> None:
    replicas = [Questions(), Questions(), Questions()]
    third = Ticket("one", "t", share=1 / 3)
    with replicas[0].counted(third), replicas[1].counted(third), replicas[2].counted(third):
        assert sum(replica.count for replica in replicas) == pytest.approx(1)


def test_what_is_reported_is_the_mean_since_the_last_report() -> None:
    now = 0.0
    questions = Questions(lambda: now)
    with questions.counted(Ticket("one", "t")), questions.counted(Ticket("other", "t")):
        now = 0.5
    now = 2.0  # three quarters of the time nobody was there, and nobody is now
    assert questions.reported() == {QUESTIONS: 0.5}
    now = 3.0
    assert questions.reported() == {QUESTIONS: 0.0}


def test_a_call_that_fails_is_over_too() -> None:
    questions = Questions()
    with pytest.raises(KeyError), questions.counted(Ticket("one", "t")):
        raise KeyError
    assert questions.count == 0


@pytest.mark.parametrize(
    ("reported", "queued", "replicas"), [({}, 0, 0), ({"a": 3, "b": 5}, 0, 2), ({"a": 8}, 4, 3)]
)
def test_replicas_follow_from_questions_and_what_waits(
    reported: dict[str, float], queued: float, replicas: float
) -> None:
    context: Any = SimpleNamespace(
        aggregated_metrics={QUESTIONS: reported, "other": {"a": 100}},
        total_queued_requests=queued,
        config=SimpleNamespace(target_ongoing_requests=4),
    )
    assert by_questions(context) == (replicas, {})
