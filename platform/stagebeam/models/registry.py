"""The families that can be trained, by name, and which one a model folder is of."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig

from stagebeam.local_copy import fetched
from stagebeam.models.families import llava, llava_next, mllama, qwen_vl
from stagebeam.models.family import Family

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (mllama.FAMILY, llava.FAMILY, llava_next.FAMILY, qwen_vl.FAMILY)
}
# What else goes by a family's name, as Pixtral does by LLaVA's, sees images in another way.
_TOWERS = {"llava": "clip_vision_model", "llava_next": "clip_vision_model"}


def family_of(path: str, expected: str | None = None) -> Family:
    """The family of the model at `path`, a folder, a URL or a hub name.

    Raises ValueError where there is no model, one of no known family or with another vision tower,
    or not of the `expected`.
    """
    if not Path(path).exists() and path.startswith(("/", ".", "runs/")):
        raise ValueError(f"There is no model folder at {path}.")
    folder = fetched(path)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a model folder: {str(error).splitlines()[0]}") from None
    name = config.model_type
    if name not in FAMILIES:
        raise ValueError(f"{path} holds a {name} model; known families: {', '.join(FAMILIES)}.")
    if expected not in (None, name):
        raise ValueError(f"{path} holds a {name} model, and the recipe says {expected}.")
    tower = config.vision_config.model_type
    if _TOWERS.get(name, tower) != tower:
        raise ValueError(f"{path} is a {name} with a {tower}; only {_TOWERS[name]} is known.")
    return FAMILIES[name]
