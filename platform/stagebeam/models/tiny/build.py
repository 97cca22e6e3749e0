"""A small untrained model in the same classes and the same folder form as the real one.

Nothing downstream asks whether a model is tiny: it is a Hugging Face folder with weights, a fast
tokenizer, an image processor and a chat template, made offline. What makes it learn in minutes on
a CPU (all gates open, wide initial weights, one token a word) is set in this package alone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from stagebeam.models.tiny import llava, mllama, qwen_vl
from stagebeam.models.tiny.words import word_tokenizer

# From a tokenizer and a number of decoder layers, the model, and what has its `save_pretrained`
# for everything else in the folder.
Build = Callable[[PreTrainedTokenizerFast, int], tuple[Any, Any]]

BUILDERS: dict[str, Build] = {
    "mllama": mllama.build,
    "llava": llava.build_llava,
    "llava_next": llava.build_llava_next,
    "qwen2_5_vl": qwen_vl.build,
}


def build_tiny(
    path: Path, corpus: Iterable[str], seed: int = 0, layers: int = 4, family: str = "mllama"
) -> None:
    """Write an untrained tiny model to `path`; its vocabulary is every word of `corpus`.

    The folder appears whole or not at all.
    """
    torch.manual_seed(seed)
    tokenizer = word_tokenizer(corpus)
    model, processor = BUILDERS[family](tokenizer, layers)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    partial.rename(path)
