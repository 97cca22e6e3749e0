"""Opening a model folder: whole or refused, and known by its fingerprint."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaConfig

from stagebeam.models.load import fingerprint, load


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy that may be spoiled."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def change_weights(folder: Path, change) -> None:  # type: ignore[no-untyped-def]
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def one_sentence(error: pytest.ExceptionInfo[ValueError]) -> bool:
    text = str(error.value)
    return "\n" not in text and text.endswith(".")


def test_a_whole_folder_opens_in_evaluation_mode(tiny_folder: Path) -> None:
    loaded = load(str(tiny_folder), "cpu")
    assert not loaded.model.training
    assert loaded.model.dtype is torch.float32
    assert loaded.fingerprint == fingerprint(str(tiny_folder))
    assert loaded.encoder.ids("red")


def test_a_missing_weight_is_refused_by_name(folder: Path) -> None:
    name = "model.language_model.layers.0.mlp.up_proj.weight"

    def drop(weights: dict[str, torch.Tensor]) -> None:
        key = next(key for key in weights if key.endswith("layers.0.mlp.up_proj.weight"))
        del weights[key]

    change_weights(folder, drop)
    with pytest.raises(ValueError, match=f"missing_keys.*{name}") as error:
        load(str(folder), "cpu")
    assert one_sentence(error)


def test_a_weight_too_many_is_refused(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.update(stranger=torch.zeros(2)))
    with pytest.raises(ValueError, match=r"unexpected_keys.*stranger") as error:
        load(str(folder), "cpu")
    assert one_sentence(error)


def test_an_absent_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model folder at") as error:
        load(str(tmp_path / "nothing"))
    assert one_sentence(error)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a model folder") as error:
        load(str(tmp_path))
    assert "\n" not in str(error.value)


def test_another_family_is_refused(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps({"model_type": "qwen2_vl"}))
    with pytest.raises(ValueError, match="holds a qwen2_vl model; known families") as error:
        load(str(folder))
    assert one_sentence(error)


def test_a_llava_with_another_vision_tower_is_refused(folder: Path) -> None:
    """Pixtral's images are of any size, and would be encoded wrongly without a word."""
    LlavaConfig(vision_config={"model_type": "pixtral"}).save_pretrained(folder)
    with pytest.raises(ValueError, match="is a llava with a pixtral; only clip_vision_model") as e:
        load(str(folder))
    assert one_sentence(e)


def test_the_fingerprint_follows_what_decides_an_answer(folder: Path) -> None:
    before = fingerprint(str(folder))
    (folder / "README.md").write_text("a note")
    assert fingerprint(str(folder)) == before

    def nudge(weights: dict[str, torch.Tensor]) -> None:
        next(iter(weights.values())).view(-1)[0] += 1e-3

    change_weights(folder, nudge)
    changed = fingerprint(str(folder))
    assert changed != before
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert fingerprint(str(folder)) not in (before, changed)


def test_a_hub_name_is_its_own_fingerprint() -> None:
    assert fingerprint("somebody/a-model") == "somebody/a-model"


def test_weights_in_a_pickle_are_refused_and_never_opened(folder: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(folder / "sprung"),)

    (folder / "model.safetensors").unlink()
    torch.save(Trap(), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no weights that can be read as safetensors") as error:
        load(str(folder), "cpu")
    assert "\n" not in str(error.value)
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize("name", ["config.json", "processor_config.json"])
def test_code_that_a_folder_brings_along_is_not_run(folder: Path, name: str) -> None:
    (folder / "theirs.py").write_text(f"import os; os.mkdir({str(folder / 'sprung')!r})")
    settings = json.loads((folder / name).read_text())
    if name == "config.json":
        settings["model_type"] = "theirs"
        settings["auto_map"] = {"AutoConfig": "theirs.Config"}
    else:
        settings["processor_class"] = "TheirProcessor"
        settings["auto_map"] = {"AutoProcessor": "theirs.TheirProcessor"}
    (folder / name).write_text(json.dumps(settings))
    with suppress(ValueError):  # or done without
        assert load(str(folder), "cpu").encoder.tokenizer
    assert not (folder / "sprung").exists()
