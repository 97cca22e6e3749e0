"""Hunts: right by a reckoning that shares no code with them, and nothing else changed by them."""

from __future__ import annotations

import hashlib
import re
from itertools import combinations, permutations

import pytest

from stagebeam.data.sources import fingerprint
from stagebeam.data.sources.scenes import draw, draw_range
from stagebeam.records import Example
from stagebeam.source_config import ScenesSource
from stagebeam.stages import Stage, parse


def hunts(difficulty: int, rows: int = 300) -> list[Example]:
    return list(draw(ScenesSource(rows=rows, questions="hunt", difficulty=difficulty)))


def asked(example: Example) -> tuple[list[int], int]:
    """The numbers of the question, and what three of them are to make."""
    form = r"Numbers: ([\d, ]+)\. Which three make (\d+), least first\?"
    found = re.fullmatch(form, example.messages[0].text)
    assert found
    return [int(number) for number in found[1].split(", ")], int(found[2])


@pytest.mark.parametrize(("difficulty", "largest"), [(1, 10), (2, 15), (3, 20)])
def test_three_numbers_make_what_is_asked_for_no_others_do_and_they_are_the_answer(
    difficulty: int, largest: int
) -> None:
    drawn = hunts(difficulty)
    for example in drawn:
        numbers, total = asked(example)
        assert len(set(numbers)) == 6
        right = [
            ", ".join(map(str, three))
            for three in permutations(numbers, 3)
            if sum(three) == total and three[0] < three[1] < three[2]
        ]
        assert right == [example.answer]
    assert {number for example in drawn for number in asked(example)[0]} == set(
        range(1, largest + 1)
    )


def test_the_reasoning_counts_down_to_nothing_and_the_conclusion_is_the_answer() -> None:
    form = r"(\d+): (\d+) minus (\d+) is (\d+)\. (\d+): (\d+) minus (\d+) is (\d+)\. (\d+)\."
    for example in hunts(3):
        found = parse(example.messages[1].text)
        assert found.valid and found.conclusion == example.answer
        said = re.fullmatch(form, found.bodies[Stage.REASONING])
        assert said
        least, total, minus, left, middle, again, less, rest, most = map(int, said.groups())
        assert total == asked(example)[1]
        assert (minus, less, again, most) == (least, middle, left, rest)
        assert (total - least, left - middle) == (left, rest)
        assert example.answer == f"{least}, {middle}, {most}"


def test_two_hunts_have_a_stage_each_and_both_are_in_the_answer() -> None:
    form = (
        r"First: ([\d, ]+)\. Second: ([\d, ]+)\. Which three of the first make (\d+), and which "
        r"three of the second make (\d+)\?"
    )
    for example in draw(ScenesSource(rows=200, questions="two_hunts")):
        found = re.fullmatch(form, example.messages[0].text)
        assert found
        answer = parse(example.messages[1].text)
        assert answer.valid and answer.conclusion == example.answer
        named = (example.answer or "").split("; ")
        stages = (Stage.CAPTION, Stage.REASONING)
        for listed, total, three, stage in zip(
            (found[1], found[2]), (found[3], found[4]), named, stages, strict=True
        ):
            numbers, chosen = listed.split(", "), three.split(", ")
            makes = [c for c in combinations(map(int, numbers), 3) if sum(c) == int(total)]
            assert [sorted(c) for c in makes] == [[int(n) for n in chosen]]
            assert re.findall(r"(\d+)[:.](?: \d+ minus| ?$)", answer.bodies[stage]) == chosen


def test_a_hunt_is_one_question_without_a_picture() -> None:
    for example in hunts(1, 20):
        assert (example.source, example.category) == ("scenes/hunt", "hunt")
        assert len(example.messages) == 2 and not example.images and not example.choices


def test_a_range_drawn_apart_equals_the_same_range_drawn_together() -> None:
    source = ScenesSource(rows=20, seed=5, questions="hunt")
    assert list(draw_range(source, 0, 7)) + list(draw_range(source, 7, 20)) == list(draw(source))


def test_the_usual_questions_keep_their_rows_and_the_mark_of_their_shards() -> None:
    source = ScenesSource(rows=200, seed=3)
    settings = (
        '{"split":"train","require_stages":null,"deduplicate":false,"kind":"scenes",'
        '"rows":200,"seed":3,"difficulty":2}'
    )
    assert source.model_dump_json() == settings
    assert fingerprint(source) == hashlib.sha256(settings.encode()).hexdigest()
    assert fingerprint(source) != fingerprint(ScenesSource(rows=200, seed=3, questions="hunt"))
    texts = "\n".join(m.text for example in draw(source) for m in example.messages)
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "296d9700d24a07a0"
