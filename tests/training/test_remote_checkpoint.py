"""Checkpoints and exports in an S3 bucket, without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from object_store import names

from stagebeam.data.ledger import Ledger, Plan
from stagebeam.models.registry import family_of
from stagebeam.storage import RemotePath, download, filled
from stagebeam.training.checkpoint import (
    _publish,
    read_ledger,
    remove_uncommitted,
    start_step,
    write_ledger,
)
from stagebeam.training.shards import Extent, Header, Snapshot, file_name

PLAN = Plan(40, global_batch_size=4, world_size=1, epochs=2, seed=1)


def test_a_run_goes_on_from_what_is_committed_and_removes_the_rest(bucket: RemotePath) -> None:
    run = bucket / "run"
    assert start_step(PLAN, run) == 0
    for name, step in (("step-00000002-a", 2), ("step-00000004-a", 4), ("step-00000006-b", 6)):
        with filled(run / name) as folder:
            write_ledger(Ledger.after(PLAN, step), folder)
            (folder / "rank-00000-of-00001.safetensors").write_bytes(b"x")
    best, latest = ({"checkpoint_dir_name": f"step-0000000{n}-a"} for n in (2, 4))
    committed = {"checkpoint_results": [best], "latest_checkpoint_result": latest}
    (run / "checkpoint_manager_snapshot.json").write_text(json.dumps(committed))
    remove_uncommitted(run)
    left = {name.split("/")[0] for name in names(run) if "/" in name}
    assert left == {"step-00000002-a", "step-00000004-a"}
    assert start_step(PLAN, run) == 4
    with pytest.raises(ValueError, match=r"^The checkpoint s3://.*step-00000006-b has no ledger"):
        read_ledger(run / "step-00000006-b")


def test_a_ranks_share_comes_back_to_the_last_bit(bucket: RemotePath, tmp_path: Path) -> None:
    master = torch.randn(1000)
    header = Header(
        step=3,
        optimizer_step=3,
        rank=0,
        world_size=1,
        pieces={"w": Extent(start=0, shape=(1000,))},
    )
    written = Snapshot(header, {"master/w": master})
    with filled(bucket / "share") as folder:
        written.write(folder)
        here = (folder / file_name(0, 1)).read_bytes()
    assert names(bucket / "share") == [file_name(0, 1)]
    download(bucket / "share", tmp_path)
    assert (tmp_path / file_name(0, 1)).read_bytes() == here


def test_an_export_that_is_half_uploaded_is_no_model(
    bucket: RemotePath, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever file the upload breaks off at, over an older export or over none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, whole = bucket / "model", RemotePath.upload
    count = len(list(tiny_folder.iterdir()))

    def copied(number: int) -> Path:
        made = tmp_path / f"made-{number}"
        made.mkdir()
        for file in tiny_folder.iterdir():
            (made / file.name).write_bytes(file.read_bytes())
        return made

    for number in range(count):
        left = [number]

        def breaking(place: RemotePath, file: Path, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            whole(place, file)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(RemotePath, "upload", breaking)
            _publish(copied(number), folder)
        with pytest.raises(ValueError, match=r"is not a model folder|no model folder"):
            family_of(str(folder))
    made = copied(count)
    _publish(made, folder)
    assert not made.exists()
    assert family_of(str(folder)).name == "mllama"
    assert {n: (folder / n).read_bytes() for n in names(folder)} == {
        p.name: p.read_bytes() for p in tiny_folder.iterdir()
    }
