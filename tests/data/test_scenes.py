"""Drawn scenes: reproducible, valid, and right by a reckoning that shares no code with them."""

from __future__ import annotations

import io
import re
from collections import Counter
from typing import Any

import pytest
from PIL import Image as PilImage

from stagebeam.data.sources.scenes import CELL, LEVELS, PAPER, RGB, draw, draw_range
from stagebeam.records import Example
from stagebeam.source_config import ScenesSource
from stagebeam.stages import Stage, parse

LETTERS = "ABCD"


@pytest.fixture(scope="module", params=[1, 2, 3])
def level(request: pytest.FixtureRequest) -> list[Example]:
    """600 examples of one difficulty."""
    return list(draw(ScenesSource(rows=600, difficulty=request.param)))


def turns(example: Example) -> list[tuple[str, dict[Stage, str]]]:
    """Each question with the bodies of its answer."""
    asked, answered = example.messages[::2], example.messages[1::2]
    return [(q.text, dict(parse(a.text).bodies)) for q, a in zip(asked, answered, strict=True)]


def pixels(example: Example) -> Any:
    return PilImage.open(io.BytesIO(example.images[0].bytes)).convert("RGB")


def reckon(question: str, caption: str) -> str:
    """The answer to a question, from the caption's words alone."""
    kind, _, listed = caption.rstrip(".").partition(": ")
    if kind == "Shapes":
        return reckon_shapes(question, [tuple(thing.split()) for thing in listed.split(", ")])
    if kind == "Bars":
        pairs = (bar.split() for bar in listed.split(", "))
        return reckon_numbers(question, {colour: int(height) for colour, height in pairs})
    assert caption == "There is no image."
    return reckon_numbers(question, {})


def reckon_shapes(question: str, things: list[tuple[str, ...]]) -> str:
    def count(name: str) -> int:
        word = name.removesuffix(" shapes").removesuffix("s")
        return sum(word in (colour, kind, f"{kind}e") for colour, kind in things)

    if found := re.fullmatch(r"How many (.+) are there\?", question):
        return str(count(found[1]))
    if found := re.fullmatch(r"Are there more (\w+) than (\w+)\?", question):
        return "yes" if count(found[1]) > count(found[2]) else "no"
    if found := re.fullmatch(r"If all (.+) are removed, how many shapes are left\?", question):
        return str(len(things) - count(found[1]))
    if found := re.fullmatch(r"If (\d+) more (.+) are added, how many \2 are there\?", question):
        return str(int(found[1]) + count(found[2]))
    if found := re.fullmatch(r"What colour is the (\w+)\?", question):
        (colour,) = (colour for colour, kind in things if kind == found[1])
        return colour
    found = re.fullmatch(r"What is the (\w+) shape\?", question)
    assert found, question
    (kind,) = (kind for colour, kind in things if colour == found[1])
    return kind


def reckon_numbers(question: str, bars: dict[str, int]) -> str:
    def number(word: str) -> int:
        return bars[word] if bars else int(word)

    if found := re.fullmatch(r"Which bar is the (highest|lowest)\?", question):
        ranked = sorted(bars, key=lambda colour: bars[colour])
        return ranked[-1] if found[1] == "highest" else ranked[0]
    if found := re.fullmatch(r"How much higher is (\w+) than (\w+)\?", question):
        return str(number(found[1]) - number(found[2]))
    found = re.fullmatch(r"What is (\w+) (plus|minus) (\w+)\?", question)
    assert found, question
    sign = 1 if found[2] == "plus" else -1
    return str(number(found[1]) + sign * number(found[3]))


def test_a_range_drawn_apart_equals_the_same_range_drawn_together() -> None:
    source = ScenesSource(rows=40, seed=5)
    whole = list(draw(source))
    assert len(whole) == 40
    assert list(draw_range(source, 0, 13)) + list(draw_range(source, 13, 40)) == whole
    assert list(draw_range(source, 29, 30)) == [whole[29]]


@pytest.mark.parametrize("other", [{"split": "test"}, {"seed": 1}])
def test_another_split_or_seed_gives_other_scenes(other: dict[str, Any]) -> None:
    first = list(draw(ScenesSource(rows=100)))
    second = list(draw(ScenesSource(rows=100, **other)))
    seen = {(e.images, e.messages) for e in first if e.images}
    assert not seen & {(e.images, e.messages) for e in second if e.images}
    assert not {e.id for e in first} & {e.id for e in second}
    assert {e.split for e in second} == {other.get("split", "train")}


def test_every_answer_is_a_valid_staged_one(level: list[Example]) -> None:
    for example in level:
        roles = [message.role for message in example.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(parse(message.text).valid for message in example.messages[1::2])


def test_the_gold_answer_is_the_last_conclusion(level: list[Example]) -> None:
    for example in level:
        assert example.answer == parse(example.messages[-1].text).conclusion


def test_every_answer_follows_from_the_caption(level: list[Example]) -> None:
    for example in level:
        for question, bodies in turns(example):
            stem, _, options = question.partition(" Options: ")
            expected = reckon(stem, bodies[Stage.CAPTION])
            if options:
                letter = bodies[Stage.CONCLUSION]
                assert f"{expected} ({letter})" in options.rstrip(".").split(", "), example
            else:
                assert bodies[Stage.CONCLUSION] == expected, example


def test_choices_hold_the_answer_under_its_letter(level: list[Example]) -> None:
    offered = [e for e in level if e.choices]
    for example in offered:
        assert example.answer is not None
        last, bodies = turns(example)[-1]
        expected = reckon(last.partition(" Options: ")[0], bodies[Stage.CAPTION])
        assert example.choices[LETTERS.index(example.answer)] == expected
        assert 2 <= len(example.choices) == len(set(example.choices)) <= 4
    letters = Counter(e.answer for e in offered)
    assert set(letters) == set(LETTERS) and max(letters.values()) < len(offered) / 2


def test_the_image_shows_what_the_caption_says(level: list[Example]) -> None:
    colour_of = {rgb: colour for colour, rgb in RGB.items()}
    for example in level:
        if not example.images:
            continue
        image = pixels(example)
        assert image.size == (48, 48)
        caption = turns(example)[0][1][Stage.CAPTION]
        if example.source == "scenes/shapes":
            centres = [
                image.getpixel((CELL * column + CELL // 2, CELL * row + CELL // 2))
                for row in range(3)
                for column in range(3)
            ]
            shown = [colour_of[c] for c in centres if c != PAPER]
            assert shown == [thing.split()[0] for thing in caption[8:].split(", ")]
        else:
            columns = [CELL * n + CELL // 2 for n in range(3)]
            colours = [colour_of[image.getpixel((x, 47))] for x in columns]
            heights = [
                sum(image.getpixel((x, y)) != PAPER for y in range(48)) // 5 for x in columns
            ]
            bars = [f"{c} {h}" for c, h in zip(colours, heights, strict=True)]
            assert caption == f"Bars: {', '.join(bars)}."


def test_every_kind_of_row_occurs(level: list[Example]) -> None:
    assert {e.source for e in level} == {"scenes/shapes", "scenes/chart", "scenes/text"}
    categories = {"counting", "comparison", "arithmetic", "attribute", "chart", "text"}
    assert {e.category for e in level} == categories
    shares = {
        "text only": sum(not e.images for e in level),
        "two turns": sum(len(e.messages) == 4 for e in level),
        "multiple choice": sum(bool(e.choices) for e in level),
    }
    assert all(share > 20 for share in shares.values()), shares
    assert all(bool(e.images) == (e.source != "scenes/text") for e in level)


def test_difficulty_decides_what_occurs() -> None:
    for number, expected in LEVELS.items():
        captions = [
            turns(e)[0][1][Stage.CAPTION].rstrip(".")
            for e in draw(ScenesSource(rows=400, difficulty=number))
        ]
        scenes = [c[8:].split(", ") for c in captions if c.startswith("Shapes: ")]
        words = {word for scene in scenes for thing in scene for word in thing.split()}
        assert words == {*expected.colours, *expected.kinds}
        sizes = {len(scene) for scene in scenes}
        assert sizes == set(range(expected.objects[0], expected.objects[1] + 1))
        heights = [
            int(bar.split()[1]) for c in captions if c[:4] == "Bars" for bar in c[6:].split(", ")
        ]
        assert max(heights) == expected.tallest_bar
