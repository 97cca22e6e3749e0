"""Pairs of samples: which of them are right, and that both stand behind the same right text."""

from __future__ import annotations

from jobs.benchmarks.judge_models import words_of
from jobs.benchmarks.judge_pairs import answer_pairs, stage_pairs
from stagebeam.data.sources.scenes import draw
from stagebeam.models.tiny.words import UNKNOWN, word_tokenizer
from stagebeam.records import Example, Message
from stagebeam.source_config import ScenesSource
from stagebeam.stages import Stage, render


def answer(caption: str, reasoning: str, conclusion: str, summary: str = "Plan.") -> str:
    bodies = (summary, caption, reasoning, conclusion)
    return render(dict(zip(Stage, bodies, strict=True)))


EXAMPLE = Example(
    "1",
    (),
    (Message("user", "Q"), Message("assistant", answer("Three.", "a then b", "a and b"))),
    "scenes/hunt",
    "train",
    "a and b",
    "hunt",
)
RIGHT = answer("Three.", "a then b", "a and b")
OTHER_WAY = answer("Three.", "b then a", "a and b")
WRONG = answer("Three.", "a then c", "a and c")
MISSEEN = answer("Two.", "a then b", "a and b")


def test_another_way_to_the_right_conclusion_is_right() -> None:
    assert stage_pairs(EXAMPLE, [RIGHT, OTHER_WAY]) == []
    (pair,) = stage_pairs(EXAMPLE, [OTHER_WAY, WRONG])
    assert (pair.stage, pair.prefix) == (
        Stage.REASONING,
        "<SUMMARY> Plan. </SUMMARY> <CAPTION> Three. </CAPTION>",
    )
    assert pair.chosen == " <REASONING> b then a </REASONING>"
    assert pair.rejected == " <REASONING> a then c </REASONING>"
    assert pair.messages == EXAMPLE.messages[:-1]


def test_a_reasoning_is_compared_only_behind_a_right_caption() -> None:
    (pair,) = stage_pairs(EXAMPLE, [MISSEEN, WRONG])
    assert (pair.stage, pair.prefix) == (Stage.CAPTION, "<SUMMARY> Plan. </SUMMARY>")
    assert "Three." in pair.chosen and "Two." in pair.rejected


def test_a_stage_that_nobody_has_right_ends_the_pairs() -> None:
    assert stage_pairs(EXAMPLE, [MISSEEN, MISSEEN, "<SUMMARY> Plan."]) == []


def test_whole_answers_are_right_by_their_conclusion() -> None:
    (pair,) = answer_pairs(EXAMPLE, [WRONG, MISSEEN, "no stages"])
    assert (pair.prefix, pair.chosen, pair.rejected) == ("", MISSEEN, WRONG)


def test_a_hunt_has_no_word_that_its_models_do_not_know() -> None:
    tokenizer = word_tokenizer(words_of("hunt"))
    unknown = tokenizer.convert_tokens_to_ids(UNKNOWN)
    source = ScenesSource(rows=1500, seed=77, questions="hunt")
    for example in draw(source):
        for message in example.messages:
            assert unknown not in tokenizer(message.text)["input_ids"], message.text
