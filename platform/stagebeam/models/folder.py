"""Writing a model folder that transformers and vLLM both open.

transformers 5 holds LLaVA's CLIP tower without the level `vision_model` that its weights have in
published folders. It reads both layouts, and writes the one that it read; a model that was made
from a config, and every descendant of it, is written without the level. vLLM (seen in 0.32.0)
knows the published layout alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_TOWER = "model.vision_tower."


def write_folder(
    folder: Path, model: Any, processor: Any, weights: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Weights, configs, tokenizer, image processor and chat template of a model of transformers.

    `processor` is whatever has `save_pretrained` for all but the model; `weights`, by the model's
    own names, stand for the model's where it does not hold them whole.
    """
    named = _published_names(model.config, model.state_dict() if weights is None else weights)
    model.save_pretrained(folder, state_dict=named)
    processor.save_pretrained(str(folder))


def _published_names(config: Any, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names from which `save_pretrained` makes those of published folders, whichever layout
    the model was read from."""
    if config.vision_config.model_type != "clip_vision_model":
        return dict(weights)
    return {name.replace(_TOWER, f"{_TOWER}vision_model."): w for name, w in weights.items()}
