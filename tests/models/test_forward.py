"""The device half of Mllama against stock transformers, row by row."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from logits import CLOSE, distance, expect_each
from PIL import Image as PilImage
from transformers import AutoConfig, AutoProcessor, MllamaForConditionalGeneration
from transformers.models.mllama.image_processing_pil_mllama import get_all_supported_aspect_ratios

from stagebeam.models.encoder import IGNORE, EncodedRow
from stagebeam.models.families import mllama
from stagebeam.models.load import Loaded, load
from stagebeam.records import Example, Image, Message


def ours(loaded: Loaded, rows: Sequence[Example]) -> list[torch.Tensor]:
    """Logits [T, V] of each row of one batch, padding cut off."""
    arrays, _ = loaded.encoder(rows)
    batch = {key: torch.from_numpy(value) for key, value in arrays.items()}
    with torch.no_grad():
        logits = mllama.forward(loaded.model, batch, loaded.encoder.normalisation)
    lengths = arrays["attention_mask"].sum(1)
    return [row[:length] for row, length in zip(logits, lengths, strict=True)]


def stock(loaded: Loaded, row: Example) -> torch.Tensor:
    """Logits [T, V] by transformers' own processor and forward."""
    encoder = loaded.encoder
    pictures = [PilImage.open(io.BytesIO(image.bytes)) for image in row.images]
    inputs = encoder.processor(
        text=encoder.render(row.messages, len(row.images), answer_next=False),
        images=pictures or None,
        add_special_tokens=False,
        return_tensors="pt",
    )
    assert ("pixel_values" in inputs) == bool(pictures)
    with torch.no_grad():
        return loaded.model(**inputs).logits[0]


@pytest.fixture(scope="module")
def rows(scenes: list[Example]) -> list[Example]:
    """With one image, none, one and two, of different lengths."""
    one, two = (next(e for e in scenes if e.source == f"scenes/{s}") for s in ("shapes", "chart"))
    both = Example("both", one.images + two.images, one.messages, "test")
    return [one, next(e for e in scenes if not e.images), two, both]


def test_a_mixed_batch_gives_each_row_the_logits_that_it_has_alone(
    loaded: Loaded, rows: list[Example]
) -> None:
    expect_each(ours(loaded, rows), rows, lambda row: ours(loaded, [row])[0])


def test_every_row_of_a_mixed_batch_equals_stock_transformers(
    loaded: Loaded, rows: list[Example]
) -> None:
    """The text-only row too, which stock transformers runs without any cross-attention layer."""
    expect_each(ours(loaded, rows), rows, lambda row: stock(loaded, row))


def test_rows_of_a_batch_are_answered_as_each_is_alone(loaded: Loaded, rows: list[Example]) -> None:
    def answered(some: Sequence[Example]) -> list[list[int]]:
        encoder = loaded.encoder
        encoded = []
        for row in some:
            images = tuple(encoder.image(image.bytes) for image in row.images)
            ids = encoder.prompt_ids(row.messages[:-1], images)
            encoded.append(EncodedRow(ids, [IGNORE] * len(ids), images))
        arrays = encoder.collate(encoded, left=True)
        batch = {key: torch.from_numpy(value) for key, value in arrays.items()}
        with torch.no_grad():
            inputs = mllama.generation(loaded.model, batch, encoder.normalisation)
            out = loaded.model.generate(**inputs, max_new_tokens=8, do_sample=False)
        return out[:, arrays["input_ids"].shape[1] :].tolist()

    seeing = rows[:3]  # of equally many images, or none
    assert answered(seeing) == [answered([row])[0] for row in seeing]


def test_the_image_and_the_gates_matter(loaded: Loaded, rows: list[Example]) -> None:
    """Or else the equalities above would say nothing about images."""
    other = rows[2].images[0]
    swapped = Example("x", (other,), rows[0].messages, "test")
    assert distance(ours(loaded, [rows[0]])[0], ours(loaded, [swapped])[0]) > 0.1


@pytest.fixture(scope="module")
def tiled(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A model that cuts images into up to four tiles, as the 11B one does."""
    folder = tmp_path_factory.mktemp("models") / "tiled"
    processor = AutoProcessor.from_pretrained(tiny_folder)
    processor.image_processor.max_image_tiles = 4
    config = AutoConfig.from_pretrained(tiny_folder)
    config.vision_config.max_num_tiles = 4
    config.vision_config.supported_aspect_ratios = [
        list(ratio) for ratio in get_all_supported_aspect_ratios(4)
    ]
    torch.manual_seed(0)
    model = MllamaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if "gate" in name and parameter.numel() == 1:
            torch.nn.init.ones_(parameter)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return load(str(folder), "cpu")


@pytest.mark.parametrize(
    ("width", "height", "tiles"), [(48, 48, 1), (90, 48, 2), (48, 130, 3), (100, 100, 4)]
)
def test_an_image_of_fewer_tiles_than_fit_equals_stock_transformers(
    tiled: Loaded, width: int, height: int, tiles: int
) -> None:
    """What stands in the absent tiles reaches the present ones, so it must be stock's zeros."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PilImage.fromarray(noise).save(buffer, "PNG")
    messages = (Message("user", "What colour is the circle?"), Message("assistant", "red"))
    row = Example("tiles", (Image(buffer.getvalue()),), messages, "test")
    assert tiled.encoder([row])[0]["aspect_ratio_mask"].sum() == tiles
    assert distance(ours(tiled, [row])[0], stock(tiled, row)) < CLOSE
