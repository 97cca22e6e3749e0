"""What a free reply says, by the rules that published figures rest on and by our own."""

from __future__ import annotations

import pytest

from stagebeam.evaluation.matching import (
    MathVistaMatch,
    hallusionbench_scores,
    match_choice,
    match_mathvista,
    match_yes_no,
)
from stagebeam.stages import STAGES, Stage, render

FRUIT = {"A": "apple", "B": "a ripe pear", "C": "plum", "D": "12"}
FIVE = {**FRUIT, "E": "fig"}


@pytest.mark.parametrize(
    "reply, letter",
    [
        ("B", "B"),
        ("{B}", "B"),
        ("Answer:D", "D"),
        ("*C*", "C"),
        ("Surely it must be (C).", "C"),
        ("one two three A five six seven", "A"),  # the fourth word from the end
        ("one A three four five six", None),  # the fifth
        ("A pear is shown, therefore A", None),  # where the letter stands first counts
        ("Either A or B", None),
        ("b", None),  # a lone small letter is no option's, nor is there one's whole text
        ("the answer is b", "B"),
        ("The correct answer is **C**, as anybody can see who looks at the picture", "C"),
        ("The answer\nis D; A is wrong and so are the other ones", "D"),
        ("The answer is E, and neither A nor B", None),  # the pattern ends with D
        ("The answer is blue", "B"),  # and does not look at what follows
        ("<CONCLUSION>C</CONCLUSION>", None),  # tags are no punctuation here
        ("Z", "Z"),
        ("None of them: Z.", "Z"),
        ("Z or A", "A"),
        ("I'm sorry, but without the image provided I cannot choose B", "Z"),
        ("Cannot determine the answer", "Z"),
        ("Failed to obtain answer via API. B", None),
        ("PLUM", "C"),
        ("The plum it is", "C"),
        ("Not the apple but the plum", None),  # two texts
        ("It can only be a plum, as the two others are not even blue.", None),  # too long
        ("", None),
    ],
)
def test_a_choice_as_published_figures_read_it(reply: str, letter: str | None) -> None:
    assert match_choice(reply, FIVE, "compat") == letter


def test_a_text_may_be_twice_as_long_as_all_options_and_no_longer() -> None:
    longest = 2 * sum(map(len, FRUIT.values()))
    assert match_choice("plum".ljust(longest, "-"), FRUIT, "compat") == "C"
    assert match_choice("plum".ljust(longest + 1, "-"), FRUIT, "compat") is None


def test_a_letter_that_is_no_option_is_none() -> None:
    two = {"A": "long enough a text", "B": "another long text"}
    assert match_choice("The answer is C", two, "compat") is None
    assert match_choice("C", two, "compat") is None


def test_options_may_be_numbers_and_stay_as_they_were() -> None:
    options = {"A": 4, "B": 7.5}
    assert match_choice("7.5", options, "compat") == "B"  # type: ignore[arg-type]
    assert options == {"A": 4, "B": 7.5}


@pytest.mark.parametrize(
    "said, letter",
    [
        ("B", "B"),
        ("(c)", "C"),
        ("d).", "D"),
        ("A ripe pear.", "B"),
        ("F", None),
        ("Z", None),
        ("The answer is B", None),
        ("It is the plum", None),
        ("Cannot determine the answer", None),
    ],
)
def test_a_strict_choice_is_the_conclusion_and_nothing_but_the_option(
    said: str, letter: str | None
) -> None:
    assert match_choice(said, FRUIT, "strict") == letter
    bodies = {**dict.fromkeys(STAGES, "A"), Stage.CONCLUSION: said}
    assert match_choice(render(bodies), FRUIT, "strict") == letter


def test_a_staged_reply_without_a_whole_conclusion_is_strictly_none() -> None:
    assert match_choice("<CAPTION> plum </CAPTION> B", FRUIT, "strict") is None
    assert match_choice("<CONCLUSION> B", FRUIT, "strict") is None
    same = {"A": "plum", "B": "Plum."}
    assert match_choice("plum", same, "strict") is None


@pytest.mark.parametrize(
    "reply, said",
    [
        ("Yes", "Yes"),
        ("no!", "No"),
        ("(no)", "No"),
        ("No, there is not", "No"),
        ("Yes. There is", "Yes"),
        ("I would say yes", "Yes"),
        ("yes/no", "Unknown"),
        ("yes-men are there", "Yes"),  # a mark with no space beside it becomes one
        ("yes-men - all of them", "Unknown"),  # beside one it goes everywhere
        ("yes,1,000 of them", "Unknown"),  # and so it does where a number has a comma
        ("Answer:no", "Unknown"),  # a colon stays
        ("**no**", "Unknown"),
        ("nobody", "Unknown"),
        ("yes.no", "Unknown"),
        ("2.5, so yes.", "Yes"),
        ("", "Unknown"),
    ],
)
def test_yes_or_no_is_a_word_of_the_reply_and_the_other_is_not(reply: str, said: str) -> None:
    assert match_yes_no(reply) == said


def test_strictly_the_conclusion_alone_says_yes_or_no() -> None:
    bodies = {**dict.fromkeys(STAGES, "no"), Stage.CONCLUSION: "Yes."}
    assert match_yes_no(render(bodies)) == "Unknown"
    assert match_yes_no(render(bodies), "strict") == "Yes"
    assert match_yes_no("<CAPTION> no </CAPTION>", "strict") == "Unknown"


def hallusion(*rows: tuple[str, str, int]) -> list[dict[str, object]]:
    """Rows of (l2-category, set_figure_question, score), in turn visual-dependent and not."""
    names = ("index", "category", "l2-category", "score")
    return [
        dict(zip(names, (f"{n}_x_{l2}_{place}", ("VD", "VS")[n % 2], l2, score), strict=True))
        for n, (l2, place, score) in enumerate(rows)
    ]


def test_figures_and_questions_are_right_if_all_their_rows_are() -> None:
    rows = hallusion(
        ("map", "0_0_0", 1),
        ("map", "0_1_0", 1),  # the same question of another figure
        ("map", "0_1_1", 0),
        ("map", "1_1_0", 1),  # another set
        ("chart", "0_0_0", 0),  # another kind
    )
    found = hallusionbench_scores(rows)
    assert list(found) == ["Overall", "VD", "VS", "map", "chart"]
    assert found["Overall"] == pytest.approx({"aAcc": 60, "fAcc": 50, "qAcc": 50})
    assert found["map"] == pytest.approx({"aAcc": 75, "fAcc": 200 / 3, "qAcc": 200 / 3})
    assert found["chart"] == {"aAcc": 0, "fAcc": 0, "qAcc": 0}
    assert found["VS"] == {"aAcc": 100, "fAcc": 100, "qAcc": 100}


def test_rows_that_cannot_be_grouped_are_refused() -> None:
    with pytest.raises(ValueError, match="without a row"):
        hallusionbench_scores([])
    with pytest.raises(ValueError, match="index 7 names no set"):
        hallusionbench_scores([{"index": 7, "score": 1}])


def math_row(kind: str, answer: str, prediction: str, res: str = "", **more: object) -> dict:
    base = {"question_type": "free_form", "answer_option": "", "choices": ""}
    base |= {"answer_type": kind, "answer": answer, "prediction": prediction, "res": res}
    return base | more


def picked(prediction: str, res: str, choices: object = "['3', '14']") -> dict:
    options = {"question_type": "multi_choice", "answer_option": "B", "choices": choices}
    return math_row("text", "14", prediction, res, **options)


@pytest.mark.parametrize(
    "row, prefetched, hit",
    [
        (math_row("integer", "7", "7", "7"), 7, True),
        (math_row("integer", "0", "0", "0"), 0, True),
        (math_row("integer", "7", " 7\n", "7 "), 7, True),
        (math_row("integer", "7", "7.0", "7.0"), None, False),
        (math_row("integer", "7", "8", "8"), None, False),  # what is wrong is not prefetched
        (math_row("integer", "7", "it is 7", "7"), None, True),  # a judge found it
        (math_row("float", "0.5", "0.50", ""), 0.5, False),
        (math_row("float", "0.5", ".5", ".5"), 0.5, True),
        (math_row("float", "0.5", "nan", "nan"), None, False),
        (math_row("text", "red", "red", "red"), None, False),  # free texts never hit
        (math_row("text", "None", "red", ""), "None", True),  # but for the one that is "None"
        (math_row("list", "[1, 2]", "[1, 2]", "[1, 2]"), None, False),
        (picked("B", "B"), "B", True),
        (picked("is 14", "14"), "B", True),
        (picked("A", "B"), "A", True),  # a choice is prefetched whatever it is
        (picked("who knows", ""), None, False),
        (picked("B", "B", ["3", "14"]), "B", True),
    ],
)
def test_a_mathvista_row_as_published_figures_read_it(
    row: dict, prefetched: object, hit: bool
) -> None:
    found = match_mathvista(row, "compat")
    assert found == MathVistaMatch(prefetched, hit)  # type: ignore[arg-type]
    assert type(found.prefetched) is type(prefetched)


@pytest.mark.parametrize(
    "row, value, hit",
    [
        (math_row("integer", "7", "7", "8"), 7, True),  # what a judge extracted does not count
        (math_row("integer", "7", "8", "7"), 8, False),
        (math_row("integer", "7", "it is 7", "7"), None, False),
        (math_row("text", "Red", "red.", ""), "red", True),
        (math_row("text", "Red", "it is red", "red"), None, False),
        (picked("B", ""), "B", True),
        (picked("A", "B"), "A", False),
        (picked("It is 14", "14"), None, False),
    ],
)
def test_a_mathvista_row_read_strictly(row: dict, value: object, hit: bool) -> None:
    found = match_mathvista(row, "strict")
    assert found.hit is hit
    if row["answer_type"] != "text" or row["question_type"] == "multi_choice":
        assert found.prefetched == value
    bodies = {**dict.fromkeys(STAGES, "7"), Stage.CONCLUSION: row["prediction"]}
    assert match_mathvista({**row, "prediction": render(bodies)}, "strict") == found


@pytest.mark.parametrize("choices", ["", "3, 14]", "__import__('os')", "{'A': 3}", 5])
def test_choices_are_a_list_and_never_run_as_code(choices: object) -> None:
    with pytest.raises(ValueError, match="choices of a MathVista row are not a list"):
        match_mathvista(picked("B", "B", choices), "compat")
