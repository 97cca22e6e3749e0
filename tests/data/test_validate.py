from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image as PilImage

from stagebeam.data.validate import Refused, check, validated
from stagebeam.recipe import DataConfig
from stagebeam.records import Example, Image, Message

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
    assert reason in str(check(make_example(messages=messages), unstaged))


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
    assert check(make_example(id=" "), CONFIG) == "The id is empty."
    _, assistant = make_example().messages
    broken = make_example(messages=(Message("user", "what \ud800"), assistant))
    assert "not valid Unicode" in str(check(broken, CONFIG))


def test_images_that_do_not_decode_are_refused(
    make_example: Make, make_png: Callable[..., bytes]
) -> None:
    whole = make_png()
    jpeg = io.BytesIO()
    PilImage.effect_noise((9, 9), 90).save(jpeg, "JPEG")
    short = jpeg.getvalue()[:-20]  # its header is whole
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n"
    for data in (b"", b"no image", whole[: len(whole) // 2], whole[:-14], short, eps):
        reason = check(make_example(images=(Image(data, "sqa/1.png"),)), CONFIG)
        assert reason is not None and reason.startswith("The image sqa/1.png does not decode")


def test_the_pixel_limit_holds_for_every_image(
    make_example: Make, make_png: Callable[..., bytes]
) -> None:
    good, large = Image(make_png(10, 10)), Image(make_png(10, 11), "b.png")
    assert check(make_example(images=(good,)), CONFIG) is None
    reason = check(make_example(images=(good, large)), CONFIG)
    assert reason == "The image b.png has 10 x 11 pixels, more than 100."


def test_validated_keeps_order_and_earlier_refusals(make_example: Make) -> None:
    refused = Refused("x", "It was so.")
    bad = replace(make_example(1), id="")
    rows = list(validated([make_example(0), refused, bad, make_example(2)], CONFIG))
    expected = [make_example(0), refused, Refused("(no id)", "The id is empty."), make_example(2)]
    assert rows == expected
