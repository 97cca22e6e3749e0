"""A Mllama of some tens of millions of weights, and scenes to train it on."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from stagebeam.data.layout import TRAIN_SPLIT
from stagebeam.data.ledger import Plan
from stagebeam.data.order import read_rows
from stagebeam.data.sources.scenes import draw
from stagebeam.data.writing import write_shards
from stagebeam.inference.wording import wording
from stagebeam.models.tiny.build import build_tiny
from stagebeam.recipe import DataConfig
from stagebeam.source_config import ScenesSource

_ROWS_IN_VOCABULARY = 256
_HEAD = 64  # numbers of an attention head
ROWS_A_STEP = 8


def vocabulary(source: ScenesSource | None = None) -> list[str]:
    """Texts with the words of the scenes and of judging them."""
    scenes = draw(source or ScenesSource(rows=_ROWS_IN_VOCABULARY))
    return [*wording(), *(message.text for scene in scenes for message in scene.messages)]


def build_mid_size(folder: Path, width: int, layers: int) -> int:
    """Write the model; returns the number of its weights."""
    with tempfile.TemporaryDirectory() as scratch:
        tiny = Path(scratch) / "tiny"
        build_tiny(tiny, vocabulary(), layers=layers)
        config = AutoConfig.from_pretrained(tiny)
        processor = AutoProcessor.from_pretrained(tiny)
    text = config.text_config
    text.num_attention_heads = text.num_key_value_heads = width // _HEAD
    text.initializer_range *= (text.hidden_size / width) ** 0.5
    text.hidden_size, text.intermediate_size = width, 4 * width
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def plan_of(shards: Path, world_size: int, steps: int) -> Plan:
    """The order of the rows, the same for whoever trains on them."""
    rows = read_rows(shards, TRAIN_SPLIT, {})
    return Plan(rows, ROWS_A_STEP, world_size, max_steps=steps, window=8)


def write_scenes(folder: Path, rows: int) -> None:
    """Shards of as many scenes."""
    write_shards(draw(ScenesSource(rows=rows)), folder, DataConfig(shards=folder))
