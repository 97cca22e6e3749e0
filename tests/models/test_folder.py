"""A written folder: the names of published weights, whichever layout its model came in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stagebeam.models.folder import write_folder
from stagebeam.models.load import load
from stagebeam.models.tiny.build import build_tiny

# As in llava-hf/llava-1.5-7b-hf, llava-hf/llava-v1.6-vicuna-7b-hf and Qwen/Qwen2.5-VL-3B-Instruct.
PUBLISHED = {
    "llava": {
        "language_model.model.embed_tokens.weight",
        "language_model.lm_head.weight",
        "multi_modal_projector.linear_1.weight",
        "vision_tower.vision_model.embeddings.class_embedding",
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
        "vision_tower.vision_model.pre_layrnorm.weight",
    },
    "llava_next": {
        "image_newline",
        "language_model.lm_head.weight",
        "vision_tower.vision_model.embeddings.class_embedding",
    },
    "qwen2_5_vl": {
        "model.embed_tokens.weight",
        "lm_head.weight",
        "visual.patch_embed.proj.weight",
        "visual.merger.mlp.0.weight",
    },
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_weights_are_named_as_published_and_open_whole(family: str, tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    build_tiny(first, ["red square"], family=family, layers=1)
    start = load(str(first), "cpu")
    write_folder(second, start.model, start.encoder.processor)
    again = load(str(second), "cpu")  # refuses missing and unexpected weights
    weights = {name: 2 * weight for name, weight in again.model.state_dict().items()}
    write_folder(third, again.model, again.encoder.processor, weights)

    for folder in (second, third):
        names = set(load_file(folder / "model.safetensors"))
        assert names >= PUBLISHED[family]
        assert not any(name.startswith("vision_tower.embeddings") for name in names)
    twice = load(str(third), "cpu").model.state_dict()
    assert twice.keys() == start.model.state_dict().keys()
    for name, weight in start.model.state_dict().items():
        assert torch.equal(twice[name], 2 * weight), name
