"""What is shipped with a job."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from ray._private.runtime_env.packaging import create_package

from jobs.submission.shipping import relative_paths, runtime_env, shipment
from stagebeam.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[3]
RECIPES = sorted((ROOT / "jobs" / "recipes").glob("*.yaml"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """That extends another one beside it, neither of them in a clone."""
    settings = {
        "name": "base",
        "model": {"path": "/models/one"},
        "data": {"shards": "/shards", "sources": [{"kind": "scenes", "rows": 8}]},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(settings))
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"extends": "base.yaml", "name": "mine"}))
    return path


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "clone"
    files = {
        "cluster/runtime_env.yaml": "env_vars: {PYTHONPATH: platform}\nexcludes: [/runs, /.git]\n",
        "jobs/prepare.py": "the job",
        "platform/stagebeam/recipe.py": "the library",
        "platform/stagebeam/left.tmp": "",
        "runs/shards/part-00000.parquet": "large",
        ".git/HEAD": "",
        ".venv/bin/python": "",
        ".gitignore": "*.tmp\n",
        "submitted/old.yaml": "of another day",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def packed(clone: Path, recipe: Path, target: Path) -> tuple[str, dict[str, str]]:
    """The command, and the files that Ray would upload, by name."""
    with shipment("prepare", recipe, load_recipe(recipe), ["--fresh", "a b"], clone) as shipped:
        settings = dict(shipped.runtime_env)
        folder = settings["working_dir"]
        create_package(folder, target, include_gitignore=True, excludes=settings["excludes"])
    with ZipFile(target) as package:
        files = {n: package.read(n).decode() for n in package.namelist() if not n.endswith("/")}
    return shipped.command, files


def test_the_clones_files_and_the_recipe_are_shipped_and_nothing_else(
    clone: Path, recipe: Path, tmp_path: Path
) -> None:
    command, files = packed(clone, recipe, tmp_path / "package.zip")
    assert command == "python -m jobs.prepare submitted/mine.yaml --fresh 'a b'"
    assert sorted(files) == [
        ".gitignore",
        "cluster/runtime_env.yaml",
        "jobs/prepare.py",
        "platform/stagebeam/recipe.py",
        "submitted/mine.yaml",
    ]
    assert files["jobs/prepare.py"] == "the job"


def test_what_is_shipped_is_the_recipe_with_what_it_extends(
    clone: Path, recipe: Path, tmp_path: Path
) -> None:
    shipped = packed(clone, recipe, tmp_path / "package.zip")[1]["submitted/mine.yaml"]
    assert Recipe.model_validate(yaml.safe_load(shipped)) == load_recipe(recipe)
    assert "extends" not in shipped


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_the_same_run(path: Path) -> None:
    recipe = load_recipe(path)
    again = Recipe.model_validate(yaml.safe_load(recipe.to_yaml()))
    assert (again, again.fingerprint()) == (recipe, recipe.fingerprint())


def test_our_own_runtime_environment_is_read() -> None:
    assert runtime_env(ROOT)["env_vars"]["PYTHONPATH"] == "platform"


def test_a_folder_that_is_no_clone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name a clone of Stagebeam"):
        runtime_env(tmp_path)


def test_paths_that_only_the_job_would_see_are_named() -> None:
    settings = {
        "name": "mixed",
        "model": {"path": "a/hub-name"},
        "data": {
            "shards": "runs/shards",
            "sources": [
                {"kind": "llava_cot", "annotations": "/mnt/train.jsonl", "image_root": "images"}
            ],
        },
    }
    named = relative_paths(Recipe.model_validate(settings))
    assert named == ["data.shards", "data.sources.0.image_root"]
