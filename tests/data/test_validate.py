from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image as PilImage
from PIL.PngImagePlugin import PngImageFile

from stagebeam.data.refusal import Refused
from stagebeam.data.validate import as_text, check, rules, validated
from stagebeam.recipe import DataConfig
from stagebeam.records import Example, Image, Message
from stagebeam.source_config import ScenesSource

CONFIG = DataConfig(shards=Path("unused"), max_image_pixels=100)
Make = Callable[..., Example]


def test_a_good_example_passes(make_example: Make) -> None:
    assert check(make_example(), CONFIG) is None
    assert check(make_example(images=()), CONFIG) is None


def test_several_turns_and_a_system_message_pass(make_example: Make) -> None:
    turns = make_example().messages
    assert check(make_example(messages=turns + turns), CONFIG) is None
    system = Message("system", "Answer in <SUMMARY> and three more stages.")
    assert check(make_example(messages=(system, *turns)), CONFIG) is None


def _messages(*roles: str) -> tuple[Message, ...]:
    return tuple(Message(role, "text") for role in roles)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ((), "The conversation is empty"),
        (_messages("system"), "The conversation is empty"),
        (_messages("assistant"), "Turn 1 is assistant's and should be user's"),
        (_messages("user", "user"), "Turn 2 is user's and should be assistant's"),
        (_messages("user", "assistant", "user"), "does not end with the assistant"),
        (_messages("user", "system"), "Turn 2 is system's"),
        ((Message("user", " \n"), Message("assistant", "text")), "Turn 1 is empty"),
    ],
)
def test_turns_that_do_not_alternate_are_refused(
    make_example: Make, messages: tuple[Message, ...], reason: str
) -> None:
    unstaged = CONFIG.model_copy(update={"require_stages": False})
    problem = check(make_example(messages=messages), unstaged)
    assert problem is not None and problem[0] == "turns"
    assert reason in problem[1]


def test_every_assistant_turn_must_be_staged(make_example: Make) -> None:
    user, assistant = make_example().messages
    later = make_example(messages=(user, assistant, user, Message("assistant", "Four.")))
    assert "Message 4 is not a staged answer" in str(check(later, CONFIG))
    earlier = make_example(messages=(user, Message("assistant", "Four."), user, assistant))
    assert "Message 2 is not a staged answer" in str(check(earlier, CONFIG))
    lax = CONFIG.model_copy(update={"require_stages": False})
    assert check(later, lax) is check(earlier, lax) is None


def test_a_stage_tag_in_a_users_turn_is_refused(make_example: Make) -> None:
    _, assistant = make_example().messages
    sly = make_example(messages=(Message("user", "Why </ conclusion >?"), assistant))
    lax = CONFIG.model_copy(update={"require_stages": False})
    for config in (CONFIG, lax):
        assert "contains the stage tag </ conclusion >" in str(check(sly, config))


def test_an_empty_id_and_half_a_surrogate_pair_are_refused(make_example: Make) -> None:
    assert check(make_example(id=" "), CONFIG) == ("text", "The id is empty.")
    _, assistant = make_example().messages
    half = "what \ud800"
    for change in (
        {"messages": (Message("user", half), assistant)},
        {"answer": half},
        {"choices": ("a", half)},
        {"category": half},
        {"images": (Image(make_example().images[0].bytes, half),)},
    ):
        assert "not valid Unicode" in str(check(make_example(**change), CONFIG))


def test_images_that_do_not_decode_are_refused(
    make_example: Make, make_png: Callable[..., bytes]
) -> None:
    whole = make_png()
    jpeg = io.BytesIO()
    PilImage.effect_noise((9, 9), 90).save(jpeg, "JPEG")
    short = jpeg.getvalue()[:-20]  # its header is whole
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n"
    for data in (b"", b"no image", whole[: len(whole) // 2], whole[:-14], short, eps):
        problem = check(make_example(images=(Image(data, "sqa/1.png"),)), CONFIG)
        assert problem is not None and problem[0] == "broken image"
        assert problem[1].startswith("The image sqa/1.png does not decode")


def test_the_pixel_limit_holds_for_every_image(
    make_example: Make, make_png: Callable[..., bytes]
) -> None:
    good, large = Image(make_png(10, 10)), Image(make_png(10, 11), "b.png")
    assert check(make_example(images=(good,)), CONFIG) is None
    problem = check(make_example(images=(good, large)), CONFIG)
    assert problem == ("large image", "The image b.png has 10 x 11 pixels, more than 100.")


def test_of_several_frames_the_first_counts(make_example: Make) -> None:
    frames = [PilImage.effect_noise((9, 9), 90), PilImage.effect_noise((9, 9), 50)]
    gif = io.BytesIO()
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:])
    cut = gif.getvalue()[:-20]  # in the second frame
    for data in (gif.getvalue(), cut):
        assert check(make_example(images=(Image(data, "a.gif"),)), CONFIG) is None


def _bomb(side: int) -> bytes:
    """A PNG of `side` x `side` grey pixels in a few kilobytes."""
    buffer = io.BytesIO()
    PilImage.new("L", (side, side)).save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def test_a_decompression_bomb_is_refused_before_it_is_decoded(
    make_example: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _bomb(9000)
    assert len(data) < 200_000

    def decode(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(PngImageFile, "load", decode)
    problem = check(make_example(images=(Image(data, "a.png"),)), CONFIG)
    assert problem == ("large image", "The image a.png has 9000 x 9000 pixels, more than 100.")


def test_a_sources_own_setting_stands_in_place_of_the_recipes() -> None:
    def staged(setting: bool | None) -> bool:
        return rules(CONFIG, ScenesSource(rows=1, require_stages=setting)).require_stages

    assert staged(None) and staged(True) and not staged(False)


def test_validated_keeps_order_and_earlier_refusals(make_example: Make) -> None:
    refused = Refused("x", "unsafe path", "It was so.")
    bad = replace(make_example(1), id="")
    rows = list(validated([make_example(0), refused, bad, make_example(2)], CONFIG))
    told = Refused("(no id)", "text", "The id is empty.", as_text(bad))
    assert rows == [make_example(0), refused, told, make_example(2)]
    assert json.loads(told.row)["conversations"][0] == {"role": "user", "text": "Question 1?"}
