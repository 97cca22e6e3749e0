"""`jobs.prepare` into an S3 bucket, as from the command line: the shards of a local folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from object_store import names

from stagebeam.data.manifest import read_manifest
from stagebeam.storage import Place, RemotePath

ROOT = Path(__file__).resolve().parents[2]
UNFINISHED = ".partial"


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """What a killed job leaves of its Ray session lies here; the path is short, for its sockets."""
    folder = Path(tempfile.mkdtemp(prefix="sb", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def write_recipe(file: Path, out: Place) -> Path:
    """Rows that are dropped as duplicates and rows that are refused are among the sources."""
    broken = file.with_name("broken.jsonl")
    broken.write_text("{\n" * 3)
    scenes: dict[str, Any] = {"kind": "scenes", "rows": 2400}
    cot = {"kind": "llava_cot", "annotations": str(broken), "image_root": str(file.parent)}
    data = {
        "shards": str(out / "train"),
        "sources": [cot, scenes, {**scenes, "rows": 100, "split": "test"}],
        "rows_per_shard": 200,
        "held_out": {"share": 0.1},
    }
    evaluation = {"output_dir": str(file.parent / "report"), "shards": str(out / "test")}
    recipe = {"name": "x", "model": {"path": "unused"}, "data": data, "evaluation": evaluation}
    file.write_text(yaml.safe_dump(recipe))
    return file


def start(recipe: Path, ray_folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.prepare", str(recipe)],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(["platform", ".", os.environ.get("PYTHONPATH", "")]),
            "TMPDIR": str(ray_folder),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def complete(recipe: Path, ray_folder: Path) -> None:
    job = start(recipe, ray_folder)
    _, said = job.communicate(timeout=240)
    assert job.returncode == 0, said


def kill_when(moment: Callable[[], bool], recipe: Path, ray_folder: Path) -> None:
    """Run the job and kill it, and the cluster that it started, at a moment."""
    job = start(recipe, ray_folder)
    try:
        while not moment():
            assert job.poll() is None, "it ended before"
            time.sleep(0.02)
    finally:
        family = [psutil.Process(job.pid)] if job.poll() is None else []
        family += [child for one in family for child in one.children(recursive=True)]
        for process in family:
            process.kill()
        job.communicate()
        psutil.wait_procs(family, timeout=30)


@pytest.mark.slow
def test_shards_in_a_bucket_are_those_on_a_disk_after_a_kill_too(
    bucket: RemotePath, tmp_path: Path, ray_folder: Path
) -> None:
    complete(write_recipe(tmp_path / "local.yaml", tmp_path / "out"), ray_folder)
    recipe = write_recipe(tmp_path / "remote.yaml", bucket / "out")
    train = bucket / "out" / "train"

    def marks() -> set[str]:
        below = names(train / UNFINISHED)
        return {name for name in below if "mark-" in name}

    kill_when(lambda: len(marks()) >= 4, recipe, ray_folder)
    finished = marks()
    assert not (train / "manifest.json").exists()
    times = {name: (train / UNFINISHED / name).info().mtime_ns for name in finished}

    done_again = []

    def late() -> bool:
        now = marks()
        done_again.extend(
            name
            for name in finished & now
            if (train / UNFINISHED / name).info().mtime_ns != times[name]
        )
        return len(now) >= 9

    kill_when(late, recipe, ray_folder)
    assert done_again == []  # what was finished is not done again
    complete(recipe, ray_folder)
    for folder in ("train", "test"):
        here, there = tmp_path / "out" / folder, bucket / "out" / folder
        files = sorted(p.name for p in here.iterdir() if p.is_file())
        assert sorted(names(there)) == files
        for name in files:
            assert (there / name).read_bytes() == (here / name).read_bytes(), name
    assert read_manifest(train).refused


def test_a_bucket_that_is_not_there_is_told_before_ray_starts(
    bucket: RemotePath, tmp_path: Path, ray_folder: Path
) -> None:
    recipe = write_recipe(tmp_path / "remote.yaml", RemotePath("s3://nowhere", ""))
    job = start(recipe, ray_folder)
    _, said = job.communicate(timeout=120)
    assert (job.returncode, said) == (2, "error: There is no bucket s3://nowhere.\n")
    assert list(ray_folder.iterdir()) == []
