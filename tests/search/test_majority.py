from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from stagebeam.search.best_of_n import best_of_n
from stagebeam.search.majority import elect, majority
from stagebeam.search.votes import normalise


@pytest.mark.parametrize(
    ("said", "counted"),
    [(" Two. ", "two"), ("TWO", "two"), ("two !?", "two"), ("50%", "50%"), ("1.5", "1.5")],
)
def test_case_outer_space_and_final_punctuation_do_not_count(said: str, counted: str) -> None:
    assert normalise(said) == counted


async def test_the_most_common_conclusion_wins_in_one_call_without_a_judge(
    kit: SimpleNamespace,
) -> None:
    answers = ["red", "Blue.", "blue", "green"]
    script = {"</CONCLUSION>": [kit.Say(kit.staged(a)) for a in answers]}
    generator = kit.ScriptedGenerator(script)
    settings = kit.settings(method="majority", candidates=4)
    (only,) = await kit.decisions(majority, generator, kit.FailingJudge(), settings)
    assert len(generator.requests) == 1
    assert (only.stage, only.winner, only.matches) == ("ANSWER", 1, ())
    assert only.usage.judge_calls == 0


def vote(kit: SimpleNamespace, *lines: tuple[str, float]) -> int:
    said: list[Any] = [kit.Say(text, logprob) for text, logprob in lines]
    return elect(tuple(line.candidate(i) for i, line in enumerate(said)))


def test_groups_of_one_size_are_told_apart_by_log_probability(kit: SimpleNamespace) -> None:
    a, b = kit.staged("a"), kit.staged("b")
    assert vote(kit, (a, -1.0), (b, -0.7), (a, -0.5), (b, -0.6)) == 3
    assert vote(kit, (a, -1.0), (b, -0.9), (a, -0.5), (b, -0.9)) == 2


def test_a_vote_counts_without_the_other_tags_but_a_whole_answer_speaks_for_it(
    kit: SimpleNamespace,
) -> None:
    bare = "<CONCLUSION> a </CONCLUSION>"
    assert vote(kit, (kit.staged("b"), -0.1), (bare, -0.2), (kit.staged("a"), -3.0)) == 2


def test_without_any_conclusion_the_likeliest_answer_is_given(kit: SimpleNamespace) -> None:
    assert vote(kit, ("lost", -2.0), ("<CONCLUSION> cut", -1.0)) == 1


def test_an_answer_without_a_conclusion_has_no_vote(kit: SimpleNamespace) -> None:
    assert vote(kit, ("lost", -0.1), ("lost", -0.1), (kit.staged("a"), -3.0)) == 2


async def test_majority_and_best_of_n_see_the_same_samples(kit: SimpleNamespace) -> None:
    generator, judge = kit.SeededGenerator(), kit.ScriptedJudge(len)
    for method in (majority, best_of_n):
        settings = kit.settings(method=method.__name__, candidates=4)
        await kit.decisions(method, generator, judge, settings)
    one, other = generator.requests
    assert one == other
