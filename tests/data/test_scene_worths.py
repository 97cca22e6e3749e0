"""Hunts and chains: right by a reckoning that shares no code with them, from the picture on."""

from __future__ import annotations

import hashlib
import io
import re
from itertools import permutations
from typing import Any

import pytest
from PIL import Image as PilImage

from stagebeam.data.sources import fingerprint
from stagebeam.data.sources.scenes import CELL, LEVELS, PAPER, RGB, draw, draw_range
from stagebeam.records import Example
from stagebeam.source_config import ScenesSource
from stagebeam.stages import Stage, parse

COLOUR_OF = {rgb: colour for colour, rgb in RGB.items()}


def drawn(questions: Any, difficulty: int, rows: int = 200) -> list[Example]:
    return list(draw(ScenesSource(rows=rows, questions=questions, difficulty=difficulty)))


def seen(example: Example) -> list[str]:
    """Colours in reading order, from the pixels alone."""
    image = PilImage.open(io.BytesIO(example.images[0].bytes)).convert("RGB")
    middle = CELL // 2
    centres = [
        image.getpixel((CELL * column + middle, CELL * row + middle))
        for row in range(3)
        for column in range(3)
    ]
    return [COLOUR_OF[centre] for centre in centres if centre != PAPER]


def worth_of(example: Example) -> dict[str, int]:
    listed = example.messages[0].text.removeprefix("Points: ").partition(".")[0]
    return {colour: int(number) for colour, number in map(str.split, listed.split(", "))}


def bodies(example: Example) -> dict[Stage, str]:
    found = parse(example.messages[1].text)
    assert found.valid
    return dict(found.bodies)


@pytest.mark.parametrize("difficulty", [1, 2, 3])
def test_three_in_the_picture_make_what_a_hunt_asks_for_no_others_do_and_they_are_the_answer(
    difficulty: int,
) -> None:
    for example in drawn("hunt", difficulty):
        found = re.search(r"Which three shapes make (\d+), least first\?", example.messages[0].text)
        assert found
        colours, worth = seen(example), worth_of(example)
        assert len(set(colours)) == len(colours) >= 3
        right = [
            ", ".join(three)
            for three in permutations(colours, 3)
            if sum(worth[colour] for colour in three) == int(found[1])
            and worth[three[0]] < worth[three[1]] < worth[three[2]]
        ]
        assert right == [example.answer]
        assert bodies(example)[Stage.CONCLUSION] == example.answer


def test_the_reasoning_of_a_hunt_tells_every_worth_and_then_counts_down_to_nothing() -> None:
    form = (
        r"(.+)\. (\w+) (\d+): (\d+) minus (\d+) is (\d+)\."
        r" (\w+) (\d+): (\d+) minus (\d+) is (\d+)\. (\w+) (\d+)\."
    )
    for example in drawn("hunt", 3):
        said = re.fullmatch(form, bodies(example)[Stage.REASONING])
        assert said
        known, least, a, total, minus, left, middle, b, again, less, rest, most, c = said.groups()
        worth = worth_of(example)
        assert known == ", ".join(f"{colour} {worth[colour]}" for colour in seen(example))
        assert [worth[colour] for colour in (least, middle, most)] == [int(a), int(b), int(c)]
        assert (minus, again, less, c) == (a, left, b, rest)
        assert int(total) - int(a) == int(left) and int(left) - int(b) == int(rest)
        assert f"three shapes make {total}," in example.messages[0].text
        assert example.answer == f"{least}, {middle}, {most}"


@pytest.mark.parametrize("difficulty", [1, 2, 3])
def test_a_chain_ends_where_adding_up_the_picture_ends(difficulty: int) -> None:
    lengths = set()
    for example in drawn("chain", difficulty):
        start = re.search(r"Start at (\d)", example.messages[0].text)
        assert start
        colours, worth = seen(example), worth_of(example)
        total = int(start[1]) + sum(worth[colour] for colour in colours)
        assert example.answer == str(total % 10) == bodies(example)[Stage.CONCLUSION]
        steps = re.findall(r"(\w+): (\d) plus (\d) is (\d)\.", bodies(example)[Stage.REASONING])
        assert [step[0] for step in steps] == colours
        assert all((int(a) + int(b)) % 10 == int(c) for _, a, b, c in steps)
        lengths.add(len(steps))
    fewest, most = LEVELS[difficulty].objects
    assert lengths == set(range(fewest, most + 1))


@pytest.mark.parametrize("questions", ["hunt", "chain"])
def test_the_caption_says_what_is_seen_and_the_row_says_what_it_is(questions: str) -> None:
    for example in drawn(questions, 2, 100):
        shapes = bodies(example)[Stage.CAPTION].removeprefix("Shapes: ").rstrip(".").split(", ")
        assert [shape.split()[0] for shape in shapes] == seen(example)
        assert (example.source, example.category) == (f"scenes/{questions}", questions)
        assert len(example.messages) == 2 and not example.choices


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
