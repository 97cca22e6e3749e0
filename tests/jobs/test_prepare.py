"""Preparing a recipe's sources, in this process and from the command line."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import yaml
from PIL import Image as PilImage

from jobs.prepare import check, folders, prepare
from stagebeam.data.shards import iter_examples, read_manifest
from stagebeam.data.sources import read
from stagebeam.recipe import load_recipe
from stagebeam.stages import STAGES, render

ROOT = Path(__file__).resolve().parents[2]
STAGED = render({stage: "text" for stage in STAGES})

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=256 << 20,
        runtime_env={"env_vars": {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}},
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture
def write_recipe(tmp_path: Path) -> Write:
    """A recipe with these sources, its shards under tmp_path."""

    def write(*sources: dict[str, object], held_out: bool = True, **data: object) -> Path:
        recipe: dict[str, object] = {
            "name": "small",
            "model": {"path": "unused"},
            "data": {"shards": str(tmp_path / "train"), "sources": list(sources), **data},
        }
        if held_out:
            recipe["evaluation"] = {
                "output_dir": str(tmp_path / "report"),
                "shards": str(tmp_path / "test"),
            }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return path

    return write


def scenes(rows: int, **changes: object) -> dict[str, object]:
    return {"kind": "scenes", "rows": rows, **changes}


@pytest.fixture
def llava_cot(tmp_path: Path) -> dict[str, object]:
    """Three good rows, one of them text only, among four that are refused."""
    buffer = io.BytesIO()
    PilImage.new("RGB", (4, 4)).save(buffer, "PNG")
    (tmp_path / "images" / "sqa").mkdir(parents=True)
    (tmp_path / "images" / "sqa" / "1.png").write_bytes(buffer.getvalue())
    (tmp_path / "images" / "sqa" / "cut.png").write_bytes(buffer.getvalue()[:40])
    turns = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": STAGED}]
    unstaged = [turns[0], {"from": "gpt", "value": "Because."}]
    rows: list[object] = [
        {"id": "a", "image": "sqa/1.png", "conversations": turns},
        {"id": "b", "conversations": turns},
        {"id": "c", "image": "sqa/cut.png", "conversations": turns},
        {"id": "d", "image": "../recipe.yaml", "conversations": turns},
        {"id": "e", "image": "sqa/1.png", "conversations": unstaged},
        {"id": "a", "image": "sqa/1.png", "conversations": turns},
        {"id": "f", "image": "sqa/1.png", "conversations": turns + turns},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "kind": "llava_cot",
        "annotations": str(tmp_path / "train.jsonl"),
        "image_root": str(tmp_path / "images"),
    }


@pytest.mark.usefixtures("cluster")
def test_shards_hold_the_sources_rows_in_order(write_recipe: Write, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(scenes(300), scenes(40, seed=1), rows_per_shard=150))
    manifests = prepare(recipe)
    assert list(manifests) == [tmp_path / "train"]
    assert [s.rows for s in manifests[tmp_path / "train"].shards] == [150, 150, 40]
    expected = [example for source in recipe.data.sources for example in read(source)]
    assert list(iter_examples(tmp_path / "train")) == expected


@pytest.mark.usefixtures("cluster")
def test_held_out_sources_go_to_the_evaluations_shards(write_recipe: Write, tmp_path: Path) -> None:
    sources = (scenes(5), scenes(3, split="test", seed=1), scenes(2, split="val", seed=2))
    manifests = prepare(load_recipe(write_recipe(*sources)))
    assert {f: m.splits for f, m in manifests.items()} == {
        tmp_path / "train": {"train": 5},
        tmp_path / "test": {"test": 3, "val": 2},
    }
    together = folders(load_recipe(write_recipe(*sources, held_out=False)))
    assert list(together) == [tmp_path / "train"]


@pytest.mark.usefixtures("cluster")
def test_refusals_and_rows_add_up(
    write_recipe: Write, llava_cot: dict[str, object], tmp_path: Path
) -> None:
    recipe = load_recipe(write_recipe(llava_cot, scenes(130)))
    told: list[tuple[Path, int, int]] = []
    checked = check(recipe, on_progress=lambda *now: told.append(now))
    assert not (tmp_path / "train").exists()
    manifest = prepare(recipe)[tmp_path / "train"]
    assert checked[tmp_path / "train"] == manifest.model_copy(update={"shards": ()})
    assert manifest.rows == 133
    assert manifest.sources["llava_cot/sqa"] == 2 and manifest.sources["llava_cot/text"] == 1
    reasons = {(r.id, r.reason) for r in manifest.refused}
    assert {name for name, _ in reasons} == {"a", "c", "d", "e"}
    assert ("a", "An earlier row has the same id.") in reasons
    assert ("d", "The image path ../recipe.yaml leads out of the image folder.") in reasons
    assert told[-1] == (tmp_path / "train", 137, 137)


@pytest.mark.usefixtures("cluster")
def test_preparing_again_changes_nothing(write_recipe: Write, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(scenes(20)))
    first = prepare(recipe)
    stamp = (tmp_path / "train" / "manifest.json").stat().st_mtime_ns
    assert prepare(recipe) == first
    assert (tmp_path / "train" / "manifest.json").stat().st_mtime_ns == stamp
    assert prepare(recipe, fresh=True) == first
    assert (tmp_path / "train" / "manifest.json").stat().st_mtime_ns > stamp


@pytest.mark.usefixtures("cluster")
def test_a_mistake_in_one_folder_is_told_before_another_is_written(
    write_recipe: Write, tmp_path: Path
) -> None:
    prepare(load_recipe(write_recipe(scenes(5, split="test"))))
    other = load_recipe(write_recipe(scenes(5), scenes(6, split="test")))
    with pytest.raises(ValueError, match="other sources or settings"):
        prepare(other)
    assert not (tmp_path / "train").exists()
    assert read_manifest(tmp_path / "test").rows == 5


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.prepare", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"platform{os.pathsep}."},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_the_command_writes_shards_and_shows_counts_and_refusals(
    write_recipe: Write, llava_cot: dict[str, object], tmp_path: Path
) -> None:
    path = write_recipe(llava_cot, scenes(4, split="test"))
    checked = run(path, "--check")
    assert checked.returncode == 0, checked.stderr
    assert "c: The image sqa/cut.png does not decode" in checked.stdout
    assert not (tmp_path / "train").exists()
    done = run(path)
    assert done.returncode == 0, done.stderr
    assert read_manifest(tmp_path / "train").rows == 3
    assert read_manifest(tmp_path / "test").rows == 4
    for said in ("llava_cot/sqa", "together", "refused", "e: Message 2 is not a staged answer"):
        assert said in done.stdout


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"kind": "scenes", "rows": 0}, "rows"),
        ({"kind": "clevr"}, "clevr"),
        (
            {"kind": "llava_cot", "annotations": "absent.jsonl", "image_root": "."},
            "annotations absent.jsonl: No such file",
        ),
        (
            {"kind": "llava_cot", "annotations": "a.jsonl", "image_root": "no/where"},
            "no image folder no/where",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    write_recipe: Write, tmp_path: Path, source: dict[str, object], said: str
) -> None:
    failed = run(write_recipe(scenes(3, split="test"), source))
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1
    assert said in failed.stderr
    assert failed.stdout == ""
    assert not (tmp_path / "train").exists() and not (tmp_path / "test").exists()


def test_no_sources_and_no_recipe_are_mistakes(write_recipe: Write, tmp_path: Path) -> None:
    assert "no data.sources" in run(write_recipe()).stderr
    absent = run(tmp_path / "absent.yaml")
    assert absent.returncode == 2
    assert "no recipe file" in absent.stderr
