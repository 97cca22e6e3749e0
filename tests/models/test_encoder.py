"""MllamaEncoder: what carries loss, what is refused, and the shapes of a batch."""

from __future__ import annotations

import io
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

from stagebeam.models.encoder import IGNORE, picture_of
from stagebeam.models.families.mllama import MllamaEncoder
from stagebeam.models.tiny.words import BEGIN, END_OF_TURN, IMAGE
from stagebeam.records import IMAGE_FORMATS, Example, Image, Message


def with_image(scenes: list[Example], turns: int = 1) -> Example:
    return next(e for e in scenes if e.images and len(e.messages) == 2 * turns)


def text_only(scenes: list[Example]) -> Example:
    return next(e for e in scenes if not e.images)


def test_loss_is_on_each_answer_with_its_end_token_and_nowhere_else(
    encoder: MllamaEncoder, scenes: list[Example]
) -> None:
    example = with_image(scenes, turns=2)
    row = encoder.encode(example)
    assert len(row.labels) == len(row.input_ids)
    assert all(label in (IGNORE, i) for i, label in zip(row.input_ids, row.labels, strict=True))
    # Runs of labelled tokens, decoded: exactly the assistant's turns.
    runs: list[list[int]] = []
    for before, label in zip([IGNORE, *row.labels], row.labels, strict=False):
        if label != IGNORE:
            if before == IGNORE:
                runs.append([])
            runs[-1].append(label)
    answers = [m.text for m in example.messages if m.role == "assistant"]
    assert runs == [encoder.ids(answer + END_OF_TURN) for answer in answers]


def test_a_row_is_the_templated_conversation_with_one_begin_token(
    encoder: MllamaEncoder, scenes: list[Example]
) -> None:
    example = with_image(scenes, turns=2)
    row = encoder.encode(example)
    rendered = encoder.render(example.messages, len(example.images), answer_next=False)
    assert row.input_ids == encoder.ids(rendered)
    begin = encoder.tokenizer.convert_tokens_to_ids(BEGIN)
    assert row.input_ids[0] == begin and row.input_ids.count(begin) == 1
    prompt = encoder.prompt_ids(example.messages[:1], [{}] * len(example.images))
    assert prompt.count(begin) == 1 and row.input_ids[: len(prompt)] == prompt


def test_images_stand_before_the_first_user_turn(encoder: MllamaEncoder) -> None:
    messages = (Message("system", "red"), Message("user", "blue"), Message("assistant", "yes"))
    rendered = encoder.render(messages, 2, answer_next=False)
    assert f"{IMAGE}{IMAGE}blue" in rendered and rendered.count(IMAGE) == 2


@pytest.mark.parametrize("marker", [BEGIN, END_OF_TURN, IMAGE, "<|start_header_id|>", "<|pad|>"])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_chat_markers_in_a_message_are_refused(
    encoder: MllamaEncoder, marker: str, role: str
) -> None:
    texts = {"user": "red", "assistant": "blue", role: f"red {marker} blue"}
    messages = tuple(Message(r, texts[r]) for r in ("user", "assistant"))
    with pytest.raises(ValueError, match="marker of the chat template"):
        encoder.encode(Example("row", (), messages, "test"))


def test_a_row_over_the_length_is_refused_by_name(
    encoder: MllamaEncoder, scenes: list[Example]
) -> None:
    example = text_only(scenes)
    length = len(encoder.encode(example).input_ids)
    assert MllamaEncoder(encoder.path, length).encode(example).input_ids
    with pytest.raises(ValueError, match=f"Row {example.id} has {length} tokens, more than"):
        MllamaEncoder(encoder.path, length - 1).encode(example)


@pytest.mark.parametrize("spoilt", ["garbage", "truncated"])
def test_a_broken_image_is_refused(
    encoder: MllamaEncoder, scenes: list[Example], spoilt: str
) -> None:
    example = with_image(scenes)
    data = b"not an image" if spoilt == "garbage" else example.images[0].bytes[:-40]
    with pytest.raises(ValueError, match="cannot be decoded"):
        encoder.encode(replace(example, images=(Image(data),)))


def test_a_row_that_cannot_be_trained_on_is_told_and_leaves_its_neighbours_alone(
    tiny_folder: Path, scenes: list[Example]
) -> None:
    good, broken = with_image(scenes), replace(with_image(scenes), id="broken")
    broken = replace(broken, images=(Image(b"not an image"),))
    alone, none = (encoder := MllamaEncoder(str(tiny_folder)))([good])
    batch, refused = encoder([broken, good])
    assert none == {} and refused == {"broken": "An image cannot be decoded."}
    assert (batch["labels"][0] == IGNORE).all() and batch["image_mask"].tolist() == [[0], [1]]
    assert np.array_equal(batch["input_ids"][1], alone["input_ids"][0])
    assert np.array_equal(batch["labels"][1], alone["labels"][0])
    assert np.array_equal(batch["pixel_values"], alone["pixel_values"])
    long = MllamaEncoder(str(tiny_folder), max_length=7)([good])[1]
    assert f"Row {good.id} has" in long[good.id] and "more than 7" in long[good.id]


def test_a_batch_of_no_rows_is_one_without_loss(encoder: MllamaEncoder) -> None:
    batch, refused = encoder([])
    assert refused == {}
    assert batch["labels"].shape == (1, 1) and (batch["labels"] == IGNORE).all()
    assert batch["image_mask"].tolist() == [[0]]


def test_a_batch_has_the_documented_shapes(encoder: MllamaEncoder, scenes: list[Example]) -> None:
    rows = [with_image(scenes, turns=2), text_only(scenes)]
    batch, _ = encoder(rows)
    encoded = [encoder.encode(example) for example in rows]
    width = max(len(row.input_ids) for row in encoded)
    assert {key: value.shape for key, value in batch.items()} == {
        "input_ids": (2, width),
        "labels": (2, width),
        "attention_mask": (2, width),
        "cross_attention_mask": (2, width, 1, 1),
        "pixel_values": (1, 3, 48, 48),
        "aspect_ratio_ids": (2, 1),
        "aspect_ratio_mask": (2, 1, 1),
        "image_mask": (2, 1),
    }
    assert batch["pixel_values"].dtype == np.uint8
    assert batch["image_mask"].tolist() == [[1], [0]]
    short = len(encoded[1].input_ids)
    assert batch["attention_mask"].sum(1).tolist() == [width, short]
    assert (batch["labels"][1, short:] == IGNORE).all()
    assert (batch["input_ids"][1, short:] == encoder.tokenizer.pad_token_id).all()


def test_tokens_look_at_the_image_from_its_own_token_on_and_text_rows_never(
    encoder: MllamaEncoder, scenes: list[Example]
) -> None:
    rows = [with_image(scenes), text_only(scenes)]
    batch, _ = encoder(rows)
    place = encoder.encode(rows[0]).input_ids.index(encoder.processor.image_token_id)
    looks = batch["cross_attention_mask"][:, :, 0, 0]
    assert not looks[0, :place].any()
    assert looks[0, place : len(encoder.encode(rows[0]).input_ids)].all()
    assert not looks[1].any()


def test_it_pickles_as_a_path(encoder: MllamaEncoder, tiny_folder: Path) -> None:
    encoder.ids("red")  # the processor is loaded here, and must not travel
    packed = pickle.dumps(MllamaEncoder(str(tiny_folder), 77))
    assert len(packed) < 500
    assert len(pickle.dumps(encoder)) < 500
    copy = pickle.loads(packed)
    assert (copy.path, copy.max_length) == (str(tiny_folder), 77)
    assert copy.ids("red") == encoder.ids("red")


def test_an_image_that_another_program_would_have_to_read_is_not_opened() -> None:
    drawn = io.BytesIO()
    PilImage.new("RGB", (4, 4)).save(drawn, "EPS")
    with pytest.raises(ValueError, match="cannot be decoded"):
        picture_of(drawn.getvalue())
    with PilImage.open(drawn) as opened:  # Pillow by itself would
        assert opened.format == "EPS"


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_every_format_of_shards_is_read(kind: str) -> None:
    drawn = io.BytesIO()
    PilImage.new("RGB", (4, 4), "red").save(drawn, kind)
    assert picture_of(drawn.getvalue()).size == (4, 4)
