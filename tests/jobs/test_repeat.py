"""What a report says about repeating it is true."""

from __future__ import annotations

import hashlib
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from jobs.repeat import commit, repeat_of, versions
from stagebeam.data.manifest import read_manifest
from stagebeam.data.writing import write_shards
from stagebeam.recipe import DataConfig, Recipe, load_recipe
from stagebeam.records import Example


def recipe(folder: Path, **sections: object) -> Recipe:
    evaluation = {"output_dir": folder / "out put", "shards": folder / "test"}
    return Recipe.model_validate(
        {
            "name": "r",
            "seed": 3,
            "model": {"path": "m"},
            "data": {"shards": folder / "train"},
            "search": {"seed": 5},
            "evaluation": evaluation,
            **sections,
        }
    )


MODELS = {"generator": "gen-1", "judge": "jud-1"}


@pytest.fixture
def shards(scenes: list[Example], tmp_path: Path) -> Path:
    for name in ("train", "test"):
        write_shards(scenes[:8], tmp_path / name, DataConfig(shards=tmp_path / name))
    return tmp_path


def test_files_have_the_checksums_that_they_have(shards: Path) -> None:
    made = recipe(shards)
    assert made.evaluation is not None
    found = repeat_of(made, made.evaluation, ["stagebeam", "evaluate", "--fresh"], MODELS)
    names = [shard.file for shard in read_manifest(shards / "test").shards]
    assert [file.path for file in found.files] == [str(shards / "test" / n) for n in names]
    for file in found.files:
        assert file.sha256 == hashlib.sha256(Path(file.path).read_bytes()).hexdigest()
    assert sum(file.rows or 0 for file in found.files) == 8
    assert shlex.split(found.command) == [
        *("stagebeam", "evaluate", str(shards / "out put" / "recipe.yaml"), "--fresh")
    ]
    assert found.seeds == {"recipe": 3, "search": 5}
    assert found.weights["judge"].fingerprint == "jud-1"


def test_a_quickstart_names_its_training_shards_too_and_the_folders_of_its_weights(
    shards: Path,
) -> None:
    serve = {"generator": {"model": "g/model"}, "judge": {"model": "j/model"}}
    made = recipe(shards, serve=serve)
    assert made.evaluation is not None
    found = repeat_of(made, made.evaluation, ["stagebeam", "quickstart"], MODELS)
    assert {Path(file.path).parent.name for file in found.files} == {"train", "test"}
    assert [found.weights[part].folder for part in MODELS] == ["g/model", "j/model"]


def test_a_recipe_as_the_report_writes_it_is_the_same_recipe(tmp_path: Path) -> None:
    for path in sorted((Path(__file__).parents[2] / "jobs" / "recipes").glob("*.yaml")):
        loaded = load_recipe(path)
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(loaded.model_dump(mode="json")))
        again = load_recipe(tmp_path / "recipe.yaml")
        assert again == loaded and again.fingerprint() == loaded.fingerprint(), path.name


def test_the_commit_is_told_with_whether_files_were_changed_since(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        named = ("-c", "user.name=n", "-c", "user.email=e@e")
        command = ["git", "-C", str(tmp_path), *named, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert commit(tmp_path) is None
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "one")
    head = git("rev-parse", "HEAD")
    assert commit(tmp_path) == head
    (tmp_path / "untracked").write_text("2")
    assert commit(tmp_path) == head
    (tmp_path / "file").write_text("2")
    assert commit(tmp_path) == f"{head}-dirty"
    below = tmp_path / "below"
    below.mkdir()
    assert commit(below) is None  # another project's checkout, that this one lies in


def test_versions_are_those_that_run() -> None:
    import numpy

    assert versions()["numpy"] == numpy.__version__
    assert {"python", "torch", "ray", "transformers", "deepspeed"} <= set(versions())
