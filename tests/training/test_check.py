"""What `validate` finds wrong with a recipe, one fault at a time."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from stagebeam.data.ledger import Plan
from stagebeam.data.order import read_rows
from stagebeam.data.shards import SCHEMA, to_row
from stagebeam.data.writing import write_shards
from stagebeam.models.tiny.build import build_tiny
from stagebeam.recipe import DataConfig, Recipe
from stagebeam.records import Example, Image, Message
from stagebeam.training.check import Checked, check_recipe

Change = Callable[[Path], None]


def written(rows: list[Example], folder: Path) -> Path:
    data = DataConfig(shards=folder, rows_per_shard=20, require_stages=False)
    write_shards(rows, folder, data)
    return folder


@pytest.fixture
def folder(tiny_folder: Path, scenes: list[Example], tmp_path: Path) -> Path:
    """A model, shards to train on and held-out shards."""
    shutil.copytree(tiny_folder, tmp_path / "model")
    written(scenes[:40], tmp_path / "train")
    written([replace(e, split="test") for e in scenes[40:60]], tmp_path / "test")
    return tmp_path


def look(folder: Path, rows: int = 8, **changes: Any) -> Checked:
    """Check the recipe of the folder; `train__x=1` sets `train.x`."""
    loaded: dict[str, Any] = {
        "name": "tiny",
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "data": {"shards": str(folder / "train"), "max_length": 512},
        "train": {
            "output_dir": str(folder / "run"),
            "num_workers": 2,
            "use_gpu": False,
            "global_batch_size": 4,
            "evaluation": {"shards": str(folder / "test")},
        },
    }
    for place, value in changes.items():
        section, _, key = place.partition("__")
        loaded[section][key] = value
    recipe = Recipe.model_validate(loaded)
    assert recipe.train is not None

    def plan() -> Plan:
        rows = read_rows(recipe.data.shards, "train", recipe.data.weights)
        return Plan(rows, recipe.train.global_batch_size, 2)  # type: ignore[union-attr]

    return check_recipe(recipe, recipe.train, plan, rows)


def wrong(checked: Checked) -> dict[str, str]:
    return {check.name: check.says for check in checked.checks if check.status == "wrong"}


def test_a_sound_recipe_passes_and_its_rows_are_counted(folder: Path) -> None:
    checked = look(folder)
    assert checked.ok and not wrong(checked)
    assert {check.status for check in checked.checks} == {"ok"}
    assert checked.sample is not None and len(checked.sample.lengths) == 8
    assert checked.sample.of == 40 and not checked.sample.refused


def drop_tensor(folder: Path) -> None:
    file = folder / "model" / "model.safetensors"
    weights = load_file(file)
    name = next(n for n in weights if n.endswith("layers.0.mlp.up_proj.weight"))
    save_file({n: t for n, t in weights.items() if n != name}, file, {"format": "pt"})


def reshape_tensor(folder: Path) -> None:
    file = folder / "model" / "model.safetensors"
    weights = load_file(file)
    name = next(n for n in weights if n.endswith("layers.0.mlp.up_proj.weight"))
    save_file({**weights, name: torch.zeros(3)}, file, {"format": "pt"})


def point_elsewhere(folder: Path) -> None:
    names = load_file(folder / "model" / "model.safetensors")
    files = {name: "model.safetensors" for name in names} | {"some.weight": "model-2.safetensors"}
    index = folder / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))


def promise_more(folder: Path) -> None:
    names = load_file(folder / "model" / "model.safetensors")
    files = {name: "model.safetensors" for name in [*names, "some.weight"]}
    index = folder / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))


def cut(name: str) -> Change:
    def change(folder: Path) -> None:
        file = folder / name
        file.write_bytes(file.read_bytes()[:-10])

    return change


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("change", "check", "sentence"),
    [
        (remove("train/manifest.json"), "shards", "There are no prepared shards in"),
        (remove("test/manifest.json"), "held-out rows", "There are no prepared shards in"),
        (remove("model/config.json"), "model", "is not a model folder"),
        (remove("model/tokenizer.json"), "tokenizer", "has no usable processor"),
        (remove("model/chat_template.jinja"), "tokenizer", "has no usable processor"),
        (remove("model/model.safetensors"), "weights", "model.safetensors is missing"),
        (cut("model/model.safetensors"), "weights", "model.safetensors is damaged"),
        (drop_tensor, "weights", "missing_keys.*layers.0.mlp.up_proj.weight"),
        (reshape_tensor, "weights", "mismatched_keys.*layers.0.mlp.up_proj.weight"),
        (point_elsewhere, "weights", "model-2.safetensors is missing"),
        (promise_more, "weights", "lack some.weight"),
    ],
)
def test_what_is_missing_is_named(change: Change, check: str, sentence: str, folder: Path) -> None:
    change(folder)
    checked = look(folder)
    assert not checked.ok
    assert check in wrong(checked)
    assert re.search(sentence, wrong(checked)[check])


@pytest.mark.parametrize(
    ("changes", "check", "sentence"),
    [
        ({"data__max_length": 4096}, "length", "max_length is 4096, and the model has 1024"),
        ({"train__packing": True}, "packing", "A mllama model cannot have rows packed"),
        ({"train__global_batch_size": 64}, "plan", "fewer than one global batch of 64"),
        ({"data__weights": {"nowhere": 2.0}}, "plan", "data.weights names nowhere"),
        ({"model__family": "llava"}, "model", "holds a mllama model, and the recipe says llava"),
        ({"data__max_length": 5}, "encoding", "None of 8 rows can be trained on; the first: Row"),
    ],
)
def test_what_does_not_fit_is_said(
    changes: dict[str, Any], check: str, sentence: str, folder: Path
) -> None:
    found = wrong(look(folder, **changes))
    assert list(found) == [check]
    assert sentence in found[check]


def test_a_group_that_the_model_has_not_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "model")
    build_tiny(folder / "model", ["a b"], family="llava")
    found = wrong(look(folder, model__family="llava", train__trainable=["cross_attention"]))
    assert "has no group cross_attention" in found["groups"]


def test_all_checks_are_made_whatever_the_first_found(folder: Path) -> None:
    remove("train/manifest.json")(folder)
    found = look(folder, train__packing=True, data__max_length=4096)
    assert set(wrong(found)) == {"shards", "packing", "length"}
    left_out = {check.name for check in found.checks if check.status == "left out"}
    assert left_out == {"rows", "plan", "held-out rows, apart", "encoding"}


@pytest.mark.parametrize("same", ["id", "image"])
def test_held_out_rows_must_not_be_trained_on(
    same: str, folder: Path, scenes: list[Example]
) -> None:
    seen = next(e for e in scenes[:40] if e.images)
    leaked = replace(seen, split="test")
    if same == "image":
        leaked = replace(leaked, id="another", messages=(Message("user", "?"), seen.messages[1]))
    else:
        leaked = replace(leaked, images=(), messages=(Message("user", "?"), seen.messages[1]))
    shutil.rmtree(folder / "test")
    rows = [replace(e, split="test") for e in scenes[40:60]]
    written([*rows, leaked], folder / "test")
    found = wrong(look(folder))
    assert list(found) == ["held-out rows, apart"]
    assert (seen.id if same == "id" else seen.images[0].path) in found["held-out rows, apart"]


def test_a_row_of_another_split_in_the_held_out_folder_is_no_leak(
    folder: Path, scenes: list[Example]
) -> None:
    shutil.rmtree(folder / "test")
    rows = [replace(e, split="test") for e in scenes[40:60]]
    written([*rows, scenes[0]], folder / "test")
    assert look(folder).ok


def test_refused_rows_are_counted_with_their_reasons(folder: Path, scenes: list[Example]) -> None:
    broken = replace(scenes[0], id="broken", images=(Image(b"no picture", "x.png"),))
    manifest = folder / "train" / "manifest.json"
    told = json.loads(manifest.read_text())
    file = folder / "train" / told["shards"][0]["file"]
    rows = pq.read_table(file).to_pylist()
    pq.write_table(pa.Table.from_pylist([to_row(broken), *rows[1:]], SCHEMA), file)
    told["shards"][0]["bytes"] = file.stat().st_size
    manifest.write_text(json.dumps(told))
    sample = look(folder, rows=0).sample
    assert sample is not None and len(sample.lengths) == 39
    assert sample.refused == {"broken": "An image cannot be decoded."}
