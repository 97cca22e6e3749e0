"""Rows like those of LLaVA-CoT-100k in size: a photograph and a staged answer of some 250 words."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image as PilImage
from transformers import AutoProcessor

from stagebeam.data.writing import write_shards
from stagebeam.models.families.mllama import MllamaEncoder
from stagebeam.models.tiny.build import build_tiny
from stagebeam.recipe import DataConfig
from stagebeam.records import Example, Image, Message
from stagebeam.stages import STAGES, render

_WIDTH, _HEIGHT = 640, 480  # of COCO's photographs
_WORDS = [f"word{number}" for number in range(3000)]
_STAGE_WORDS = 60
# What Llama-3.2-Vision's processor is set to.
_TILE_SIDE, _TILES = 560, 4


def write_pictures(folder: Path, rows: int) -> tuple[Path, MllamaEncoder, int]:
    """Shards of so many rows, an encoder with the real model's tiles, and bytes of an image."""
    folder.mkdir(exist_ok=True)
    model, shards = folder / "model", folder / "shards"
    build_tiny(model, [" ".join(_WORDS)])
    processor = AutoProcessor.from_pretrained(model)
    processor.image_processor.size = {"height": _TILE_SIDE, "width": _TILE_SIDE}
    processor.image_processor.max_image_tiles = _TILES
    processor.save_pretrained(model)
    write_shards(_examples(rows), shards, DataConfig(shards=shards))
    size = sum(f.stat().st_size for f in shards.glob("*.parquet")) // rows
    return shards, MllamaEncoder(str(model)), size


def _examples(rows: int) -> Iterator[Example]:
    random = np.random.default_rng(0)
    for row in range(rows):
        answer = render({s: " ".join(random.choice(_WORDS, _STAGE_WORDS)) for s in STAGES})
        yield Example(
            id=f"picture-{row}",
            images=(Image(_photograph(random), f"{row}.jpg"),),
            messages=(Message("user", "word1 word2 word3?"), Message("assistant", answer)),
            source="pictures",
        )


def _photograph(random: np.random.Generator) -> bytes:
    """Soft shapes with grain, about as many JPEG bytes as a photograph of that size has."""
    shapes = random.integers(0, 256, (_HEIGHT // 32, _WIDTH // 32, 3), np.uint8)
    soft = PilImage.fromarray(shapes).resize((_WIDTH, _HEIGHT), PilImage.Resampling.BICUBIC)
    grain = random.integers(-12, 13, (_HEIGHT, _WIDTH, 3))
    grainy = (np.asarray(soft) + grain).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    PilImage.fromarray(grainy).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
