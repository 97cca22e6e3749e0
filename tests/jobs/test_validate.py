"""`stagebeam validate` and `stagebeam estimate` as people call them: no Ray, no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stagebeam.data.writing import write_shards
from stagebeam.recipe import DataConfig
from stagebeam.records import Example

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe(tiny_folder: Path, scenes: list[Example], tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("validate")
    write_shards(scenes, folder / "shards", DataConfig(shards=folder / "shards"))
    settings = {
        "name": "tiny",
        "model": {"path": str(tiny_folder), "dtype": "float32"},
        "data": {"shards": str(folder / "shards"), "max_length": 512},
        "train": {
            "output_dir": str(folder / "run"),
            "num_workers": 2,
            "use_gpu": False,
            "global_batch_size": 8,
            "epochs": 1,
        },
    }
    path: Path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def call(job: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As a process of its own: what is on stdout counts, whoever writes there."""
    path = os.pathsep.join((str(ROOT / "platform"), str(ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    environment.pop("DS_ACCELERATOR", None)
    return subprocess.run(
        [sys.executable, "-m", f"jobs.{job}", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_a_sound_recipe_is_told_as_json_and_leaves_nothing_behind(recipe: Path) -> None:
    said = call("validate", str(recipe), "--rows", "16", "--json")
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    assert found["ok"] and {check["status"] for check in found["checks"]} == {"ok"}
    assert (found["sample"]["rows"], found["sample"]["of"]) == (16, 300)
    assert sorted(p.name for p in recipe.parent.iterdir()) == ["recipe.yaml", "shards"]


def test_what_is_wrong_is_in_the_table_and_in_the_exit_code(recipe: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.yaml"
    changed.write_text(recipe.read_text().replace("max_length: 512", "max_length: 5000"))
    said = call("validate", str(changed), "--rows", "4")
    assert said.returncode == 1
    assert "data.max_length is 5000, and the model has 1024 positions." in said.stdout


def test_a_prediction_is_marked_as_such(recipe: Path) -> None:
    said = call("estimate", str(recipe), "--rows", "16", "--tflops", "0.1", "--devices-memory", "4")
    assert said.returncode == 0, said.stderr
    assert "predicted, nothing was measured" in said.stdout
    assert "fits in 4 GiB" in said.stdout and "assumed MFU of 0.35" in said.stdout
    said = call("estimate", str(recipe), "--rows", "16", "--json")
    made = json.loads(said.stdout)
    assert made["predicted"] and made["work"]["steps"] == 37 and made["duration"] is None


@pytest.mark.parametrize("job", ["validate", "estimate"])
def test_a_recipe_without_training_is_one_sentence(job: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: none\nmodel: {path: nobody/none}\ndata: {shards: nowhere}\n")
    said = call(job, str(path))
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr == "error: The recipe 'none' has no train section.\n"


def test_the_papers_model_has_as_many_parameters_as_published(tmp_path: Path) -> None:
    """Llama-3.2-11B-Vision by its published dimensions, 10.67 billion, from its config alone."""
    text = {
        "model_type": "mllama_text_model",
        "hidden_size": 4096,
        "num_hidden_layers": 40,
        "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "pad_token_id": 128004,
        "max_position_embeddings": 131072,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    }
    vision = {
        "model_type": "mllama_vision_model",
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_global_layers": 8,
        "attention_heads": 16,
        "intermediate_size": 5120,
        "image_size": 560,
        "patch_size": 14,
        "max_num_tiles": 4,
        "vision_output_dim": 7680,
        "intermediate_layers_indices": [3, 7, 15, 23, 30],
    }
    config = {"model_type": "mllama", "text_config": text, "vision_config": vision}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    paper = ROOT / "jobs" / "recipes" / "llava-o1-llama3.2-11b-1n8g-zero3.yaml"
    settings = yaml.safe_load(paper.read_text())
    settings["model"]["path"] = str(tmp_path / "model")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    said = call("estimate", str(path), "--json")
    assert said.returncode == 0, said.stderr
    made = json.loads(said.stdout)
    assert 10.6e9 < sum(made["parameters"].values()) < 10.7e9
    held = {p["name"]: p["device"] for p in made["memory"][0]["parts"]}
    assert held["AdamW moments"] == pytest.approx(8 * 10.67e9 / 8, rel=0.01)
    assert made["disk"]["checkpoint"] == 12 * sum(made["parameters"].values())
