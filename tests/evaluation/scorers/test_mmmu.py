"""MMMU's rules for options and for free answers, without its random draw; and ScienceQA's."""

from __future__ import annotations

import pytest

from stagebeam.evaluation.scorers.mmmu import mmmu_choice, mmmu_open
from stagebeam.evaluation.scorers.scienceqa import science_choice

METALS = {"A": "iron", "B": "Copper wire", "C": "zinc", "D": "lead"}


@pytest.mark.parametrize(
    "reply, letter",
    [
        ("B", "B"),
        ("B.", "B"),
        ("Not (A) but (C)", "C"),  # the last one
        ("(D) is what A says", "D"),  # brackets before bare letters
        ("A and then B fits", "B"),
        ("C, I think", None),  # neither a word of its own nor long enough for texts
        ("What this picture shows is copper wire", "B"),
        ("In this picture lead lies on top of zinc", "C"),
        ("copper wire", None),  # five words or fewer are not searched for texts
        ("nothing at all can be seen in here", None),
        ("", None),
    ],
)
def test_the_option_that_is_named_last_counts_and_none_is_drawn(
    reply: str, letter: str | None
) -> None:
    assert mmmu_choice(reply, METALS) == letter


@pytest.mark.parametrize(
    "reply, answers, right",
    [
        ("42", ["42"], True),
        ("We add them up.\nSo the answer is 42.", ["42"], True),
        ("x = 3.14159", ["3.14"], True),
        ("The total is 12,000 dollars", ["12000"], True),
        ("It is 1.5e3", ["1500"], True),
        ("there were 3 of 7\nthus the answer is 7", ["3"], False),  # the rest of the line decides
        ("The answer is the Eiffel tower", ["Eiffel Tower"], True),
        ("The answer is paris", ["London", "Paris"], True),
        ("London it was", ["Paris"], False),
        ("The answer is banana", ["a"], False),  # a letter stands alone
        ("The answer is option a here", ["a"], True),
        ("", ["1"], False),
    ],
)
def test_a_free_answer_is_looked_for_in_what_the_reply_comes_to(
    reply: str, answers: list[str], right: bool
) -> None:
    assert mmmu_open(reply, answers) is right


@pytest.mark.parametrize(
    "reply, letter",
    [
        ("B", "B"),
        ("B. copper", "B"),
        ("I see a wire. The answer is C.", "C"),
        ("The answer is A. No, The answer is C.", None),
        ("The answer is F.", None),
        ("the answer is B", None),
        ("It is B", None),
        ("", None),
    ],
)
def test_a_science_reply_names_its_option_in_one_of_three_forms(
    reply: str, letter: str | None
) -> None:
    assert science_choice(reply, METALS) == letter
