import pytest

from stagebeam.evaluation.scoring import correct
from stagebeam.records import Example, Message

COLOURS = ("red", "dark blue", "green")


def asked(answer: str | None, *choices: str) -> Example:
    turns = (Message("user", "?"), Message("assistant", "!"))
    return Example("e1", (), turns, "test", answer=answer, choices=choices)


@pytest.mark.parametrize("said", ["Two", " two ", "TWO.", "two!\n", "two ."])
def test_case_outer_space_and_final_punctuation_do_not_count(said):
    assert correct(said, asked("two"))
    assert correct("two", asked(said))


@pytest.mark.parametrize("said", ["2", "two circles", "the answer is two", "tw o", "", None, "."])
def test_anything_but_the_answer_is_wrong(said):
    assert not correct(said, asked("two"))


def test_punctuation_inside_counts():
    assert not correct("35", asked("3.5"))
    assert correct("3.5.", asked("3.5"))


@pytest.mark.parametrize("said", ["B", "b", "B.", "(B)", "(b).", "B)", "Dark blue", "dark blue."])
def test_multiple_choice_takes_the_letter_or_the_options_text(said):
    assert correct(said, asked("B", *COLOURS))


@pytest.mark.parametrize(
    "said", ["A", "C", "D", "red", "blue", "B dark blue", "A or B", "(B", "answer is B", "BB", None]
)
def test_multiple_choice_never_guesses(said):
    assert not correct(said, asked("B", *COLOURS))


def test_an_options_text_that_another_option_shares_is_no_answer():
    assert not correct("red", asked("A", "red", "red", "blue"))
    assert correct("A", asked("A", "red", "red", "blue"))


def test_a_letter_is_read_as_the_option_of_that_letter_even_where_texts_are_letters():
    assert correct("A", asked("A", "B", "A"))
    assert not correct("A", asked("B", "B", "A"))


def test_a_letter_beyond_the_options_may_still_be_an_options_text():
    assert correct("X", asked("A", "X", "Y"))


@pytest.mark.parametrize("gold", [None, "", " . "])
def test_an_example_without_a_gold_answer_is_refused(gold):
    with pytest.raises(ValueError, match="Example e1 has no gold answer"):
        correct("two", asked(gold))


def test_a_gold_answer_that_is_not_one_of_the_letters_is_refused():
    with pytest.raises(ValueError, match="must be a letter A to C, not 'dark blue'"):
        correct("B", asked("dark blue", *COLOURS))
