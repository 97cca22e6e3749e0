"""A Mllama of some ten million weights, and scenes to train it on."""

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
from stagebeam.models.tiny.build import build_tiny
from stagebeam.recipe import DataConfig
from stagebeam.source_config import ScenesSource

_WIDTH, _LAYERS = 256, 10
_ROWS_IN_VOCABULARY = 256
ROWS_A_STEP = 8


def build_mid_size(folder: Path) -> int:
    """Write the model; returns the number of its weights."""
    corpus = [m.text for e in draw(ScenesSource(rows=_ROWS_IN_VOCABULARY)) for m in e.messages]
    with tempfile.TemporaryDirectory() as scratch:
        tiny = Path(scratch) / "tiny"
        build_tiny(tiny, corpus, layers=_LAYERS)
        config = AutoConfig.from_pretrained(tiny)
        processor = AutoProcessor.from_pretrained(tiny)
    config.text_config.hidden_size = _WIDTH
    config.text_config.intermediate_size = 4 * _WIDTH
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
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
