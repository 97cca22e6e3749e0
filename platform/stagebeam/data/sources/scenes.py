"""Image-QA that draws itself: coloured shapes, small bar charts, and text-only arithmetic.

Every example follows from (seed, split, index) alone, so any range can be drawn anywhere. The
gold four-stage annotation is computed from the scene. Questions are of the CLEVR and CLEVR-Math
kind (counting, attribute, comparison, arithmetic) and of the ChartQA kind (reading bars).
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from PIL import Image as PilImage
from PIL import ImageDraw

from stagebeam.data.sources import scene_questions as ask
from stagebeam.data.sources.files import hash_of
from stagebeam.data.sources.scene_hunts import hunt, two_hunts
from stagebeam.data.sources.scene_questions import Question, Thing
from stagebeam.data.sources.span import Span
from stagebeam.records import Example, Image, Message
from stagebeam.source_config import ScenesSource
from stagebeam.stages import Stage, render

SIDE = 48  # pixels; three cells of 16, the patch size of the tiny model
CELL = 16
RGB = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 230),
    "yellow": (240, 210, 40),
    "purple": (150, 50, 190),
    "orange": (245, 140, 30),
}
PAPER = (245, 245, 245)


@dataclass(frozen=True, slots=True)
class Level:
    """What a difficulty means."""

    colours: tuple[str, ...]
    kinds: tuple[str, ...]
    objects: tuple[int, int]  # fewest, most
    tallest_bar: int


_COLOURS = tuple(RGB)
LEVELS = {
    1: Level(_COLOURS[:3], ("circle", "square", "triangle"), (2, 4), 5),
    2: Level(_COLOURS[:5], ("circle", "square", "triangle"), (3, 6), 7),
    3: Level(_COLOURS, ("circle", "square", "triangle", "cross"), (4, 8), 9),
}
_LARGEST = {1: 10, 2: 15, 3: 20}  # number of a hunt
# Share of each kind of example, in percent.
_SHARES = (("shapes", 66), ("chart", 24), ("text", 10))
_MULTIPLE_CHOICE = 0.25
_TWO_TURNS = 0.10


def spans(source: ScenesSource, rows: int | None) -> Iterator[Span[ScenesSource]]:
    """Stretches of at most `rows` examples; one, if that is None."""
    size = rows or source.rows
    for first in range(0, source.rows, size):
        yield Span(source, first, min(size, source.rows - first))


def read_span(span: Span[ScenesSource]) -> Iterator[Example]:
    """The examples of one stretch."""
    assert span.rows is not None
    return draw_range(span.source, span.first, span.first + span.rows)


def fingerprint(source: ScenesSource) -> str:
    """Changes with the settings, from which everything follows."""
    return hash_of(source)


def absolute(source: ScenesSource) -> ScenesSource:
    """The source itself: it has no paths."""
    return source


def draw(source: ScenesSource) -> Iterator[Example]:
    """All examples of a source, in order."""
    return draw_range(source, 0, source.rows)


def draw_range(source: ScenesSource, start: int, stop: int) -> Iterator[Example]:
    """Examples `start` to `stop` of a source; the same whatever range they are drawn in."""
    level = LEVELS[source.difficulty]
    for index in range(start, stop):
        rng = random.Random(f"{source.seed}/{source.split}/{index}")
        name = f"scenes-{source.seed}-{source.split}-{index:07d}"
        if source.questions == "mixed":
            yield _example(rng, level, name, source.split)
        else:
            yield _hunt_example(rng, source, name)


def _example(rng: random.Random, level: Level, name: str, split: str) -> Example:
    kind = rng.choices([k for k, _ in _SHARES], [share for _, share in _SHARES])[0]
    images: tuple[Image, ...] = ()
    if kind == "shapes":
        things = _things(rng, level)
        images = (Image(_png(_paint_shapes(rng, things)), f"{name}.png"),)
        questions = ask.about_shapes(rng, things, level.colours, level.kinds)
    elif kind == "chart":
        bars = _bars(rng, level)
        images = (Image(_png(_paint_bars(bars)), f"{name}.png"),)
        questions = ask.about_bars(rng, bars)
    else:
        questions = ask.about_numbers(rng, level.tallest_bar)
    turns = 2 if images and rng.random() < _TWO_TURNS else 1
    asked = list(islice(questions, turns))
    if rng.random() < _MULTIPLE_CHOICE:
        asked[-1] = ask.with_options(rng, asked[-1])
    messages = [m for question in asked for m in _turn(question)]
    last = asked[-1]
    return Example(
        id=name,
        images=images,
        messages=tuple(messages),
        source=f"scenes/{kind}",
        split=split,
        answer=last.answer,
        category=last.category,
        choices=last.choices,
    )


def _hunt_example(rng: random.Random, source: ScenesSource, name: str) -> Example:
    draw_question = hunt if source.questions == "hunt" else two_hunts
    question = draw_question(rng, _LARGEST[source.difficulty])
    return Example(
        id=name,
        images=(),
        messages=_turn(question),
        source=f"scenes/{source.questions}",
        split=source.split,
        answer=question.answer,
        category=question.category,
    )


def _turn(question: Question) -> tuple[Message, Message]:
    bodies = {
        Stage.SUMMARY: question.plan,
        Stage.CAPTION: question.caption,
        Stage.REASONING: question.reasoning,
        Stage.CONCLUSION: question.answer,
    }
    return Message("user", question.text), Message("assistant", render(bodies))


def _things(rng: random.Random, level: Level) -> list[Thing]:
    """Objects in reading order, each in a cell of its own."""
    count = rng.randint(*level.objects)
    cells = sorted(rng.sample(range(9), count))
    return [Thing(rng.choice(level.colours), rng.choice(level.kinds), cell) for cell in cells]


def _bars(rng: random.Random, level: Level) -> dict[str, int]:
    """Three bars, left to right, with different colours and different heights."""
    heights = rng.sample(range(1, level.tallest_bar + 1), 3)
    return dict(zip(rng.sample(level.colours, 3), heights, strict=True))


def _paint_shapes(rng: random.Random, things: list[Thing]) -> PilImage.Image:
    canvas = PilImage.new("RGB", (SIDE, SIDE), PAPER)
    pen = ImageDraw.Draw(canvas)
    for thing in things:
        row, column = divmod(thing.cell, 3)
        left = column * CELL + 2 + rng.randint(-1, 1)
        top = row * CELL + 2 + rng.randint(-1, 1)
        _paint(pen, thing, left, top, left + 11, top + 11)
    return canvas


def _paint(
    pen: ImageDraw.ImageDraw, thing: Thing, left: int, top: int, right: int, bottom: int
) -> None:
    fill = RGB[thing.colour]
    middle = (left + right) // 2
    if thing.kind == "circle":
        pen.ellipse((left, top, right, bottom), fill=fill)
    elif thing.kind == "square":
        pen.rectangle((left, top, right, bottom), fill=fill)
    elif thing.kind == "triangle":
        pen.polygon(((middle, top), (left, bottom), (right, bottom)), fill=fill)
    else:
        pen.rectangle((middle - 1, top, middle + 2, bottom), fill=fill)
        pen.rectangle((left, top + 4, right, top + 7), fill=fill)


def _paint_bars(bars: dict[str, int]) -> PilImage.Image:
    canvas = PilImage.new("RGB", (SIDE, SIDE), PAPER)
    pen = ImageDraw.Draw(canvas)
    for column, (colour, height) in enumerate(bars.items()):
        left = column * CELL + 2
        pen.rectangle((left, SIDE - 5 * height, left + 11, SIDE - 1), fill=RGB[colour])
    return canvas


def _png(canvas: PilImage.Image) -> bytes:
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return buffer.getvalue()
