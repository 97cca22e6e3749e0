"""What is found of checkpoints after a kill."""

from __future__ import annotations

import json
from pathlib import Path

from stagebeam.training.checkpoint import remove_uncommitted


def test_checkpoints_that_were_never_committed_are_removed(tmp_path: Path) -> None:
    for name in ("step-00000002-a", "step-00000004-a", "step-00000006-b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    best, latest = ({"checkpoint_dir_name": f"step-0000000{n}-a"} for n in (2, 4))
    committed = {"checkpoint_results": [best], "latest_checkpoint_result": latest}
    (tmp_path / "checkpoint_manager_snapshot.json").write_text(json.dumps(committed))
    remove_uncommitted(tmp_path)
    left = sorted(path.name for path in tmp_path.glob("step-*"))
    assert left == ["step-00000002-a", "step-00000004-a"]


def test_a_folder_that_ray_never_saw_is_left_empty(tmp_path: Path) -> None:
    (tmp_path / "step-00000002-a").mkdir()
    remove_uncommitted(tmp_path)
    assert not list(tmp_path.iterdir())
