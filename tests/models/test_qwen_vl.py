"""Qwen2.5-VL against stock transformers, row by row, and what its encoder promises."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from logits import distance, expect_each
from PIL import Image as PilImage
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, GenerationConfig, Qwen2_5_VLForConditionalGeneration

from stagebeam.models.encoder import IGNORE, Arrays, EncodedRow
from stagebeam.models.families import qwen_vl
from stagebeam.models.families.qwen_vl import FAMILY, QwenEncoder
from stagebeam.models.flops import scores
from stagebeam.models.load import Loaded, load
from stagebeam.models.tiny.build import build_tiny
from stagebeam.models.tiny.qwen_vl import IMAGE_PAD, VISION_END, VISION_START
from stagebeam.records import Example, Image, Message


@pytest.fixture(scope="module")
def loaded(scenes: list[Example], tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("models") / "qwen"
    build_tiny(folder, (m.text for e in scenes for m in e.messages), family="qwen2_5_vl")
    return load(str(folder), "cpu")


@pytest.fixture(scope="module")
def encoder(loaded: Loaded) -> QwenEncoder:
    assert isinstance(loaded.encoder, QwenEncoder)
    return loaded.encoder


def noise(width: int, height: int) -> Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PilImage.fromarray(pixels).save(buffer, "PNG")
    return Image(buffer.getvalue())


@pytest.fixture(scope="module")
def rows(scenes: list[Example]) -> list[Example]:
    """With one image, none, two of different sizes and a wide one, of different lengths."""
    one, other = (next(e for e in scenes if e.source == f"scenes/{s}") for s in ("shapes", "chart"))
    text = next(e for e in scenes if not e.images)
    return [
        one,
        text,
        replace(other, images=(noise(90, 60), *one.images)),
        replace(one, images=(noise(170, 40),)),
    ]


def tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in arrays.items()}


def ours(loaded: Loaded, rows: Sequence[Example]) -> list[torch.Tensor]:
    """Logits [T, V] of each row of one batch, padding cut off."""
    arrays, refused = loaded.encoder(rows)
    assert not refused
    with torch.no_grad():
        logits = FAMILY.forward(loaded.model, tensors(arrays), loaded.encoder.normalisation)
    lengths = arrays["attention_mask"].sum(1)
    return [row[:length] for row, length in zip(logits, lengths, strict=True)]


def stock_inputs(loaded: Loaded, ids: Sequence[int], images: Sequence[Image]) -> dict[str, Any]:
    """What transformers' own processor would make of one row."""
    input_ids = torch.tensor([list(ids)])
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if images:
        pictures = [PilImage.open(io.BytesIO(image.bytes)) for image in images]
        inputs |= dict(loaded.encoder.image_processor(pictures, return_tensors="pt"))
        image_id = loaded.model.config.image_token_id
        inputs["mm_token_type_ids"] = (input_ids == image_id).int()
    return inputs


def stock(loaded: Loaded, row: Example) -> torch.Tensor:
    """Logits [T, V] by transformers' own forward."""
    ids = loaded.encoder.encode(row).input_ids
    with torch.no_grad():
        logits: torch.Tensor = loaded.model(**stock_inputs(loaded, ids, row.images)).logits[0]
    return logits


def test_a_mixed_batch_gives_each_row_the_logits_that_it_has_alone(
    loaded: Loaded, rows: list[Example]
) -> None:
    expect_each(ours(loaded, rows), rows, lambda row: ours(loaded, [row])[0])


def test_every_row_of_a_mixed_batch_equals_stock_transformers(
    loaded: Loaded, rows: list[Example]
) -> None:
    expect_each(ours(loaded, rows), rows, lambda row: stock(loaded, row))


def test_the_image_its_place_and_the_windows_matter(loaded: Loaded, rows: list[Example]) -> None:
    """Or else the equalities above would say nothing about images."""
    two = rows[2]
    before = ours(loaded, [two])[0]
    swapped = replace(two, images=(noise(91, 60), two.images[1]))
    assert distance(before, ours(loaded, [swapped])[0]) > 0.1
    batch = tensors(loaded.encoder([two])[0])
    batch["position_ids"] = batch["attention_mask"].cumsum(1)[..., None].expand(-1, -1, 3) - 1
    visual = loaded.model.model.visual
    with torch.no_grad():
        flat = FAMILY.forward(loaded.model, batch, loaded.encoder.normalisation)
        assert distance(before, flat[0]) > 0.1
        visual.fullatt_block_indexes = [0, 1]
        try:
            whole = ours(loaded, [two])[0]
        finally:
            visual.fullatt_block_indexes = loaded.model.config.vision_config.fullatt_block_indexes
    assert distance(before, whole) > 0.01


def test_text_alone_runs_every_module_that_images_run_in_the_same_order(
    loaded: Loaded, rows: list[Example]
) -> None:
    """Under ZeRO-3 a rank that skipped the tower would leave the others waiting."""
    calls: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, module in loaded.model.named_modules()
    ]
    try:
        ours(loaded, rows)
        mixed, calls[:] = calls[:], []
        ours(loaded, [rows[1]])
    finally:
        for hook in hooks:
            hook.remove()
    assert "model.visual.merger" in calls and calls == mixed


def test_text_alone_leaves_the_tower_a_gradient_of_zero(
    loaded: Loaded, rows: list[Example]
) -> None:
    batch = tensors(loaded.encoder([rows[1]])[0])
    try:
        FAMILY.forward(loaded.model, batch, loaded.encoder.normalisation).square().sum().backward()
        for name, parameter in loaded.model.named_parameters():
            assert parameter.grad is not None, name
            assert name.startswith("model.visual.") == (not parameter.grad.any()), name
    finally:
        loaded.model.zero_grad()


@pytest.mark.parametrize("left", [False, True])
def test_positions_are_those_of_transformers(
    loaded: Loaded, encoder: QwenEncoder, rows: list[Example], left: bool
) -> None:
    batch = tensors(encoder.collate([encoder.encode(row) for row in rows], left=left))
    expected, _ = loaded.model.model.get_rope_index(
        batch["input_ids"],
        (batch["input_ids"] == loaded.model.config.image_token_id).int(),
        image_grid_thw=batch["image_grid_thw"],
        attention_mask=batch["attention_mask"],
    )
    assert torch.equal(batch["position_ids"].permute(2, 0, 1), expected)


@pytest.mark.parametrize("which", [[0, 1, 2, 3], [1, 1]])
def test_greedy_answers_of_a_batch_are_those_of_each_row_alone(
    loaded: Loaded, encoder: QwenEncoder, rows: list[Example], which: list[int]
) -> None:
    greedy = GenerationConfig(max_new_tokens=12, do_sample=False, pad_token_id=0)
    prompts, alone = [], []
    for row in (rows[i] for i in which):
        images = tuple(encoder.image(image.bytes) for image in row.images)
        ids = encoder.prompt_ids(row.messages[:1], images)
        prompts.append(EncodedRow(ids, [IGNORE] * len(ids), images))
        inputs = stock_inputs(loaded, ids, row.images)
        alone.append(loaded.model.generate(**inputs, generation_config=greedy)[0, len(ids) :])
    batch = tensors(encoder.collate(prompts, left=True))
    with torch.no_grad():
        inputs = FAMILY.generation(loaded.model, batch, encoder.normalisation)
        answers = loaded.model.generate(**inputs, generation_config=greedy)
    assert answers.tolist() == [ids.tolist() for ids in alone]


def test_flops_are_those_that_torch_counts(
    loaded: Loaded, encoder: QwenEncoder, rows: list[Example]
) -> None:
    """In eager attention, whose products torch counts; it does whole squares of causal ones."""
    config = loaded.model.config
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="eager")
    text = config.text_config
    for row in rows[1:]:
        arrays, _ = encoder([row])
        with torch.no_grad():
            with FlopCounterMode(display=False) as whole:
                FAMILY.forward(model, tensors(arrays), encoder.normalisation)
            with FlopCounterMode(display=False) as images:
                qwen_vl.image_features(model, tensors(arrays), encoder.normalisation)
            with FlopCounterMode(display=False) as merger:
                count = len(arrays["pixel_values"])
                model.model.visual.merger(torch.zeros(count, config.vision_config.hidden_size))
        counted = FAMILY.flops(config, arrays)
        assert counted.projector == merger.get_total_flops()
        assert counted.vision + counted.projector == images.get_total_flops()
        square = float(arrays["input_ids"].shape[1] ** 2)
        unseen = text.num_hidden_layers * scores(square / 2, text.hidden_size)
        assert counted.total + unseen == pytest.approx(whole.get_total_flops(), rel=0.01)


def test_flops_leave_padding_out(encoder: QwenEncoder, loaded: Loaded, rows: list[Example]) -> None:
    """A batch costs what its rows cost alone, but for the blanks of those without images."""
    config = loaded.model.config
    alone = [FAMILY.flops(config, encoder([row])[0]) for row in rows]
    together = FAMILY.flops(config, encoder(rows)[0])
    assert together.language == pytest.approx(sum(f.language for f in alone))
    assert together.vision == pytest.approx(sum(f.vision for f in alone) - alone[1].vision)
    assert alone[1].vision > 0


@pytest.mark.parametrize("tied", [False, True])
def test_groups_cover_every_parameter(loaded: Loaded, tied: bool) -> None:
    config = AutoConfig.from_pretrained(loaded.encoder.path)
    config.tie_word_embeddings = tied
    model = Qwen2_5_VLForConditionalGeneration(config)
    names = [name for name, _ in model.named_parameters()]
    assert ("lm_head.weight" in names) != tied
    groups = {name: FAMILY.group_of(config, name) for name in names}
    assert set(groups.values()) == {"vision", "projector", "language"}
    for name, group in groups.items():
        expected = "projector" if ".merger." in name else "vision" if "visual" in name else None
        assert group == (expected or "language"), name


def test_a_batch_has_the_documented_shapes(encoder: QwenEncoder, rows: list[Example]) -> None:
    batch, _ = encoder(rows)
    width = max(len(encoder.encode(row).input_ids) for row in rows)
    # 48 x 48, 90 x 60 and 170 x 40 pixels become multiples of 28, 14 to a patch
    grids = [[1, 4, 4], [1, 4, 6], [1, 4, 4], [1, 2, 12]]
    assert batch["image_grid_thw"].tolist() == grids
    patches = sum(height * width for _, height, width in grids)
    assert batch["pixel_values"].shape == (patches, 3 * 14 * 14)
    assert batch["pixel_values"].dtype == np.uint8
    assert batch["position_ids"].shape == (len(rows), width, 3)
    blank, _ = encoder([rows[1]])
    assert blank["pixel_values"].shape == (4, 3 * 14 * 14) and not blank["pixel_values"].any()
    assert blank["image_grid_thw"].tolist() == [[1, 2, 2]]


def test_nothing_is_lost_by_bytes_or_by_sending_one_frame(encoder: QwenEncoder) -> None:
    picture = PilImage.open(io.BytesIO(noise(90, 60).bytes))
    out = encoder.image_processor(
        picture, do_rescale=False, do_normalize=False, return_tensors="np"
    )
    sent = encoder.pixels(picture)["pixel_values"].reshape(-1, 3, 1, 14 * 14)
    assert np.array_equal(np.repeat(sent, 2, axis=2).reshape(len(sent), -1), out["pixel_values"])


def test_each_image_gets_as_many_tokens_as_merged_patches(
    encoder: QwenEncoder, rows: list[Example]
) -> None:
    text = encoder.tokenizer.decode(encoder.encode(rows[2]).input_ids)
    assert (
        f"{VISION_START}{IMAGE_PAD * 6}{VISION_END}{VISION_START}{IMAGE_PAD * 4}{VISION_END}"
        in text
    )
    assert text.count(IMAGE_PAD) == 10


@pytest.mark.parametrize("marker", [IMAGE_PAD, VISION_START, VISION_END, "<|video_pad|>"])
def test_chat_markers_in_a_message_are_refused(encoder: QwenEncoder, marker: str) -> None:
    messages = (Message("user", f"red {marker}"), Message("assistant", "blue"))
    with pytest.raises(ValueError, match="marker of the chat template"):
        encoder.encode(Example("row", (), messages, "test"))


def test_image_tokens_without_their_image_are_refused(
    encoder: QwenEncoder, rows: list[Example]
) -> None:
    """They would be filled with another row's image."""
    row = encoder.encode(rows[0])
    with pytest.raises(ValueError, match="has 4 image tokens, and its images take 0"):
        encoder.collate([replace(row, images=())])


def test_it_pickles_as_a_path(encoder: QwenEncoder) -> None:
    encoder.ids("red")  # the processor is loaded here, and must not travel
    packed = pickle.dumps(encoder)
    assert len(packed) < 500
    copy = pickle.loads(packed)
    assert (copy.path, copy.max_length) == (encoder.path, encoder.max_length)
    assert copy.ids("red") == encoder.ids("red")


def test_a_saved_processor_encodes_the_same_and_names_qwens_classes(
    encoder: QwenEncoder, rows: list[Example], tmp_path: Path
) -> None:
    encoder.processor.save_pretrained(str(tmp_path))
    again = QwenEncoder(str(tmp_path))(rows)[0]
    for key, value in encoder(rows)[0].items():
        assert np.array_equal(value, again[key]), key
    # As in Qwen's own folders, so that the whole processor opens it where torchvision is.
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written["image_processor_type"] == "Qwen2VLImageProcessor"
    assert written["processor_class"] == "Qwen2_5_VLProcessor"
    assert not (tmp_path / "processor_config.json").exists()
    assert IMAGE_PAD in (tmp_path / "chat_template.jinja").read_text()
