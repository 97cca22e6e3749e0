"""The real training job with its shards and its run in an S3 bucket."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from object_store import names
from training_runs import STEPS, Training, prepared, write_recipe

from stagebeam.local_copy import fetched
from stagebeam.models.registry import family_of
from stagebeam.storage import RemotePath

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

REST = 0.4  # seconds a step; without it Ray Train commits nothing before a kill


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with prepared() as folder:
        yield folder


def in_bucket(recipe: Path, run: RemotePath, shards: RemotePath) -> Path:
    settings: dict[str, Any] = yaml.safe_load(recipe.read_text())
    local = Path(settings["data"]["shards"])
    for file in local.iterdir():
        (shards / file.name).upload(file)
    settings["train"]["output_dir"], settings["data"]["shards"] = str(run), str(shards)
    recipe.write_text(yaml.safe_dump(settings))
    return recipe


def figures(run: Training) -> dict[int, set[tuple[float, ...]]]:
    """What each step was told to come to, each time that it was told."""
    told: dict[int, set[tuple[float, ...]]] = {}
    for step in run.steps():
        values = (step["train/loss"], step["train/grad_norm"], step["train/learning_rate"])
        told.setdefault(step["train/step"], set()).add(values)
    return told


def test_a_run_in_a_bucket_that_is_killed_comes_to_what_an_unbroken_local_one_does(
    folder: Path, bucket: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = Training(write_recipe(folder, "local"))
    remote = Training(
        in_bucket(write_recipe(folder, "remote"), bucket / "run", bucket / "shards"), REST
    )
    try:
        local.complete()
        dead: set[int] = set()
        remote.start()
        os.kill(remote.wait_for_read(1, 9, dead), signal.SIGKILL)  # Ray starts it again
        dead |= {read["pid"] for read in remote.reads()}
        remote.wait_for_read(0, 17, dead)
        remote.kill()  # with its cluster; the same command goes on
        again = len(remote.reads())
        remote.complete()
    finally:
        local.kill()
        remote.kill()
    assert figures(remote) == figures(local)
    assert set(figures(remote)) == set(range(1, STEPS + 1))
    assert remote.reads()[again]["step"] > 1, "the second start went on from a checkpoint"
    run = bucket / "run"
    exported = {name: (run / "model" / name).read_bytes() for name in names(run / "model")}
    written = {p.name: p.read_bytes() for p in (local.output / "model").iterdir()}
    assert exported.keys() == written.keys()
    assert exported["model.safetensors"] == written["model.safetensors"]
    steps = {name.split("/")[0] for name in names(run / "checkpoints" / "train") if "step-" in name}
    assert len(steps) == 2, "older checkpoints, and those that were not finished, are removed"
    assert (run / "summary.json").exists() and (run / "tracking" / "tracking_id").exists()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert family_of(str(run / "model")).name == "mllama"
    weights = Path(fetched(str(run / "model")), "model.safetensors")
    assert weights.read_bytes() == local.weights.read_bytes()
