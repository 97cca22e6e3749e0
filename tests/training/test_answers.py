"""What is learnt of a staged answer."""

from __future__ import annotations

import pytest

from stagebeam.records import Example, Message
from stagebeam.stages import STAGES, render
from stagebeam.training.answers import Form, Reworder, reworded

STAGED = render({stage: f"the {stage.value.lower()}" for stage in STAGES})


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("stages", STAGED),
        ("untagged", "the summary\nthe caption\nthe reasoning\nthe conclusion"),
        ("conclusion", "the conclusion"),
    ],
)
def test_each_form_keeps_its_part_of_a_staged_answer(form: Form, expected: str) -> None:
    assert reworded(STAGED, form) == expected
    assert reworded("A plain answer.", form) == "A plain answer."


def test_only_the_assistants_turns_are_reworded() -> None:
    turns = (Message("user", STAGED), Message("assistant", STAGED), Message("user", "And?"))
    example = Example("row", (), turns, "test")
    asked, answered, again = Reworder("conclusion")(example).messages
    assert (asked, again) == (turns[0], turns[2])
    assert answered == Message("assistant", "the conclusion")
