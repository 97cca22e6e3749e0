"""Preparing a recipe's sources, in this process, from the command line, and killed in between."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import psutil
import pytest
import ray
from faulty_source import EACH, ROWS, STAGED, Faulty, make_faulty
from PIL import Image as PilImage
from preparation import hashes, scenes, write_preparation

from jobs.prepare import check, prepare
from stagebeam.data.layout import Layout
from stagebeam.data.manifest import read_manifest
from stagebeam.data.shards import iter_examples
from stagebeam.data.sources import Span, read, spans
from stagebeam.recipe import load_recipe
from stagebeam.source_config import Source

ROOT = Path(__file__).resolve().parents[2]

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(
        address="local",
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

    def write(*sources: dict[str, object], **settings: Any) -> Path:
        return write_preparation(tmp_path, *sources, **settings)

    return write


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
    together = Layout.of(load_recipe(write_recipe(*sources, evaluated=False)))
    assert together.folders == (tmp_path / "train",)


@pytest.mark.usefixtures("cluster")
def test_a_share_of_the_training_rows_is_held_out(write_recipe: Write, tmp_path: Path) -> None:
    held_out = {"share": 0.2, "split": "val"}
    one = write_recipe(scenes(500), rows_per_shard=100, held_out=held_out)
    manifests = prepare(load_recipe(one))
    train, val = manifests[tmp_path / "train"], manifests[tmp_path / "test"]
    assert train.splits == {"train": train.rows} and val.splits == {"val": val.rows}
    assert train.rows + val.rows == 500 and 60 < val.rows < 140


def test_rows_are_not_held_out_into_training(write_recipe: Write) -> None:
    path = write_recipe(scenes(5), held_out={"share": 0.2, "split": "train"})
    with pytest.raises(ValueError, match="must be another split than train"):
        prepare(load_recipe(path))


@pytest.mark.usefixtures("cluster")
def test_a_tar_of_unknown_length_is_one_task_and_several_shards(
    write_recipe: Write, tmp_path: Path
) -> None:
    turns = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": STAGED}]
    with tarfile.open(tmp_path / "rows.tar", "w") as tar:
        for n in range(6):
            row = json.dumps({"id": f"row-{n}", "answer": str(n), "conversations": turns}).encode()
            member = tarfile.TarInfo(f"{n}.json")
            member.size = len(row)
            tar.addfile(member, io.BytesIO(row))
    source = {"kind": "webdataset", "shards": str(tmp_path / "*.tar"), "deduplicate": False}
    told: list[tuple[int, int | None]] = []
    recipe = load_recipe(write_recipe(source, rows_per_shard=4))
    manifest = prepare(recipe, on_progress=lambda *now: told.append(now))[tmp_path / "train"]
    assert [shard.rows for shard in manifest.shards] == [4, 2]
    assert told == [(6, None)]


@pytest.mark.usefixtures("cluster")
def test_refusals_and_rows_add_up(
    write_recipe: Write, llava_cot: dict[str, object], tmp_path: Path
) -> None:
    recipe = load_recipe(write_recipe(llava_cot, scenes(130)))
    told: list[tuple[int, int | None]] = []
    checked = check(recipe, on_progress=lambda *now: told.append(now))
    assert not (tmp_path / "train").exists()
    manifest = prepare(recipe)[tmp_path / "train"]
    assert checked[tmp_path / "train"] == manifest.model_copy(update={"shards": ()})
    assert (manifest.rows, manifest.read) == (133, 137)
    assert manifest.sources["llava_cot/sqa"] == 2 and manifest.sources["llava_cot/text"] == 1
    assert {(r.id, r.fault) for r in manifest.refused} == {
        ("a", "duplicate"),
        ("c", "broken image"),
        ("d", "unsafe path"),
        ("e", "stages"),
    }
    assert told[-1] == (137, 137)


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


@pytest.mark.usefixtures("cluster")
def test_nothing_usable_leaves_nothing(
    write_recipe: Write, llava_cot: dict[str, object], tmp_path: Path
) -> None:
    recipe = load_recipe(write_recipe(llava_cot, max_image_pixels=1))
    (tmp_path / "train.jsonl").write_text("{\n[]\n")
    with pytest.raises(
        ValueError, match="none of 2 rows is usable; the first refusal: The row is not valid"
    ):
        prepare(recipe)
    assert not (tmp_path / "train").exists()


@pytest.mark.usefixtures("cluster")
def test_a_source_that_is_wrong_inside_a_task_is_one_sentence(
    write_recipe: Write,
    llava_cot: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def then_gone(source: Source, rows: int) -> list[Span[Source]]:
        found = list(spans(source, rows))
        (tmp_path / "train.jsonl").unlink()
        return found

    monkeypatch.setattr("jobs.prepare.spans", then_gone)
    with pytest.raises(ValueError, match=r"^Cannot open the annotations .*train\.jsonl: No such"):
        prepare(load_recipe(write_recipe(llava_cot)))
    assert not (tmp_path / "train").exists()


SPAN = 250


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Faulty:
    return make_faulty(tmp_path_factory.mktemp("faulty"))


@pytest.mark.usefixtures("cluster")
def test_counts_add_up_over_a_source_with_faults(
    write_recipe: Write, faulty: Faulty, tmp_path: Path
) -> None:
    recipe = load_recipe(write_recipe(faulty.source, rows_per_shard=SPAN))
    checked = check(recipe)[tmp_path / "train"]
    assert not (tmp_path / "train").exists()
    manifest = prepare(recipe)[tmp_path / "train"]
    assert checked == manifest.model_copy(update={"shards": ()})
    assert manifest.faults == faulty.faults
    assert (manifest.read, manifest.rows) == (ROWS, ROWS - 5 * EACH) == (ROWS, len(faulty.good))
    assert list(iter_examples(tmp_path / "train")) == faulty.good
    records = [json.loads(s) for s in (tmp_path / "train" / "refused.jsonl").open()]
    assert [(r["id"], r["fault"]) for r in records] == [(r.id, r.fault) for r in manifest.refused]
    assert {(r["kind"], r["place"]) for r in records} == {
        ("llava_cot", str(faulty.source["annotations"]))
    }
    assert all(r["row"] for r in records if r["fault"] != "duplicate")


@pytest.mark.usefixtures("cluster")
def test_datasets_opens_the_shards_and_their_images(
    write_recipe: Write, faulty: Faulty, tmp_path: Path
) -> None:
    prepare(load_recipe(write_recipe(faulty.source, rows_per_shard=SPAN)))
    loaded = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "train" / "*.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert [row["id"] for row in loaded] == [example.id for example in faulty.good]
    loaded = loaded.cast_column("images", datasets.List(datasets.Image()))
    for row, example in zip(loaded, faulty.good, strict=True):
        assert [image.size for image in row["images"]] == [(16, 16)] * len(example.images)


ENVIRONMENT = {**os.environ, "PYTHONPATH": f"platform{os.pathsep}.", "COLUMNS": "200"}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.prepare", *map(str, arguments)],
        cwd=ROOT,
        env=ENVIRONMENT,
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
    assert re.search(r"read\W+7\W", checked.stdout)
    assert not (tmp_path / "train").exists()
    done = run(path)
    assert done.returncode == 0, done.stderr
    assert read_manifest(tmp_path / "train").rows == 3
    assert read_manifest(tmp_path / "test").rows == 4
    for said in ("llava_cot/sqa", "usable", "refused", "e: Message 2 is not a staged answer"):
        assert said in done.stdout
    again = run(path)
    assert again.stdout == done.stdout and again.stderr == ""


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
            "no image folder or zip file no/where",
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


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """What a killed job leaves of its Ray session lies here; the path is short, for its sockets."""
    folder = Path(tempfile.mkdtemp(prefix="sb", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def kill_when(moment: Callable[[], bool], ray_folder: Path, *arguments: object) -> bool:
    """Run the job and kill it, and the cluster that it started, at a moment; False if it ended
    before."""
    job = subprocess.Popen(
        [sys.executable, "-m", "jobs.prepare", *map(str, arguments)],
        cwd=ROOT,
        env={**ENVIRONMENT, "TMPDIR": str(ray_folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not moment() and job.poll() is None:
            time.sleep(0.01)
        ended = job.poll() is not None
    finally:
        children = psutil.Process(job.pid).children(recursive=True) if job.poll() is None else []
        job.send_signal(signal.SIGKILL)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        job.wait()
        psutil.wait_procs(children, timeout=30)
    return not ended


@pytest.mark.slow
def test_a_killed_run_is_continued_to_the_same_shards(
    cluster: None, write_recipe: Write, faulty: Faulty, tmp_path: Path, ray_folder: Path
) -> None:
    sources = (faulty.source, scenes(6000), scenes(300, split="test"))
    data: dict[str, object] = {"rows_per_shard": SPAN, "held_out": {"share": 0.1}}
    path = write_recipe(*sources, **data)
    folders = (tmp_path / "train", tmp_path / "test")
    manifests = prepare(load_recipe(path))
    unbroken = hashes(*folders)
    counts = {folder: (m.rows, m.read, m.faults) for folder, m in manifests.items()}
    for folder in folders:
        shutil.rmtree(folder)

    # Another run's shards are there, which --fresh is to replace.
    other = prepare(load_recipe(write_recipe(scenes(30), scenes(20, split="test"))))
    write_recipe(*sources, **data)
    unfinished = tmp_path / "train" / ".partial"

    def marks() -> dict[str, int]:
        return {p.name: p.stat().st_mtime_ns for p in unfinished.glob("*/mark-*.parquet")}

    def reached(enough: int) -> bool:
        return len(marks()) >= enough

    def moving() -> bool:
        return not (tmp_path / "train" / "manifest.json").exists()

    ends = []
    for enough in (1, 9, 22):
        before = marks()
        assert kill_when(partial(reached, enough), ray_folder, path, "--fresh")
        assert before.items() <= marks().items()  # what was finished is not done again
        for folder in folders:
            assert read_manifest(folder) == other[folder]
        ends.append(len(marks()))
    assert 1 <= ends[0] < ends[1] < ends[2]
    kill_when(moving, ray_folder, path, "--fresh")  # among the moves, if it can be hit
    done = run(path, "--fresh") if unfinished.exists() else run(path)
    assert done.returncode == 0, done.stderr
    assert hashes(*folders) == unbroken
    now = {folder: read_manifest(folder) for folder in folders}
    assert {folder: (m.rows, m.read, m.faults) for folder, m in now.items()} == counts
    assert sum(m.read for m in now.values()) == ROWS + 6300
    assert not unfinished.exists() and not (tmp_path / "test" / ".partial").exists()
