"""Scores of short free answers: ChartQA, DocVQA and VQAv2."""

from __future__ import annotations

import pytest

from stagebeam.evaluation.scorers.chartqa import relaxed_match
from stagebeam.evaluation.scorers.docvqa import anls, edits
from stagebeam.evaluation.scorers.punctuation import without_punctuation
from stagebeam.evaluation.scorers.vqav2 import plain, vqa_accuracy


@pytest.mark.parametrize(
    "said, answer, right",
    [
        ("105", "100", True),
        ("95.0", "100", True),
        ("105.1", "100", False),
        ("-95", "-100", True),
        ("12%", "0.12", True),
        ("12", "12%", False),  # a percentage is a hundredth
        (" 7 ", "7", True),
        ("0", "0", True),
        ("0.01", "0", False),  # around 0 there is no share
        ("Yes", "yes", True),
        ("1,000", "1000", False),
        ("Blue", "red", False),
        ("it is 100", "100", False),
    ],
)
def test_a_number_may_be_off_by_a_twentieth_and_a_text_may_not(
    said: str, answer: str, right: bool
) -> None:
    assert relaxed_match(said, [answer]) is right
    assert relaxed_match(said, ["nothing else", answer]) is right


@pytest.mark.parametrize(
    "a, b, count", [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2)]
)
def test_edits_are_the_fewest(a: str, b: str, count: int) -> None:
    assert edits(a, b) == edits(b, a) == count


@pytest.mark.parametrize(
    "said, answers, score",
    [
        ("Invoice  No. 5", ["invoice no. 5"], 1.0),
        ("invoice", ["receipt", "invoices"], 7 / 8),
        ("ab", ["abcd"], 0.5),
        ("a", ["abcd"], 0.0),  # less than half alike
        ("", [""], 1.0),
        ("", ["x"], 0.0),
    ],
)
def test_likeness_is_that_of_the_closest_answer(
    said: str, answers: list[str], score: float
) -> None:
    assert anls(said, answers) == pytest.approx(score)


@pytest.mark.parametrize(
    "said, score",
    [
        ("two", 1.0),  # 2 was said seven times
        ("2", 1.0),
        ("The 2.", 1.0),
        ("many", 0.6),  # twice: leaving out one of those two 1/3, one of the others 2/3
        ("three", 0.3),  # once: 0 without that one, else 1/3
        ("four", 0.0),
    ],
)
def test_a_reply_is_right_as_far_as_three_people_said_it(said: str, score: float) -> None:
    answers = ["2"] * 6 + ["two", "many", "many", "three"]
    assert vqa_accuracy(said, answers) == pytest.approx(score)


@pytest.mark.parametrize(
    "text, same",
    [
        ("A Dog", "dog"),
        ("none", "0"),
        ("Ten dogs", "10 dogs"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("lets", "lets"),
        ("half-full", "half full"),
        ("half- full", "half full"),
        ("1,000", "1000"),
        ("3.5 m.", "3.5 m"),
        ("on the\ttable\n", "on table"),
    ],
)
def test_texts_are_made_alike(text: str, same: str) -> None:
    assert plain(text) == same


def test_a_flag_limits_how_many_periods_go() -> None:
    assert without_punctuation("." * 40) == "." * 8
