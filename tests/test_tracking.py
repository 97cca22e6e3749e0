"""Real wandb, offline: nothing here reaches a server."""

import json
import os
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from stagebeam.tracking import run_id, start_run
from stagebeam.tracking_config import TrackingConfig

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def history(folder: Path) -> list[dict]:
    """Every logged step, read back from the file that `wandb sync` would send."""
    (path,) = folder.glob("*.wandb")
    deadline = time.monotonic() + 20
    # wandb's own process may write the end of the file a moment after `finish` has returned.
    while not (records := list(read_log(path))) or records[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < deadline, "the run's file never became whole"
        time.sleep(0.02)
    return [
        {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]


def read_log(path: Path) -> Iterator[Record]:
    """The file is a LevelDB log: a header of 7 bytes, then records of checksum (4 bytes), length
    (2), type (1) and data. What is logged here fits in the first block of 32 KiB.
    """
    content, at = path.read_bytes(), 7
    while at + 7 <= len(content):
        (length,) = struct.unpack_from("<H", content, at + 4)
        yield Record.FromString(content[at + 7 : at + 7 + length])
        at += 7 + length


def test_auto_without_a_key_keeps_metrics_and_tables_in_the_runs_folder(tmp_path):
    run = start_run(TrackingConfig(), "tiny", {"seed": 3}, tmp_path, job_type="train")
    run.log({"loss": 2.5}, step=10)
    run.table("answers", ["id", "right"], [["a", True], ["b", None]])
    offline_dir = run.offline_dir
    about = run.describe()
    run.finish()

    assert offline_dir is not None
    assert offline_dir.is_relative_to(tmp_path)
    assert about == {
        "id": run.id,
        "mode": "offline",
        "url": None,
        "offline_dir": str(offline_dir),
    }
    rows = history(offline_dir)
    assert {"loss": 2.5, "_step": 10}.items() <= rows[0].items()
    (table,) = offline_dir.glob("files/media/table/answers*.json")
    assert json.loads(table.read_text())["data"] == [["a", True], ["b", None]]


def test_a_given_id_is_the_runs_id_in_both_parts_of_an_interrupted_run(tmp_path):
    for part, step in (("first", 1), ("second", 2)):
        run = start_run(
            TrackingConfig(), "tiny", {}, tmp_path / part, job_type="train", run_id="abc123"
        )
        run.log({"loss": 1.0}, step=step)
        run.finish()
        assert run.id == "abc123"
        assert run.offline_dir is not None and run.offline_dir.name.endswith("-abc123")
        assert history(run.offline_dir)[0]["_step"] == step


def test_two_runs_at_once_do_not_share_their_metrics(tmp_path):
    train = start_run(TrackingConfig(), "t", {}, tmp_path / "t", job_type="train")
    evaluate = start_run(TrackingConfig(), "e", {}, tmp_path / "e", job_type="evaluate")
    train.log({"loss": 1.0})
    evaluate.log({"accuracy": 0.5})
    evaluate.finish()
    train.finish()
    assert train.id != evaluate.id
    assert train.offline_dir is not None and evaluate.offline_dir is not None
    assert "accuracy" not in history(train.offline_dir)[0]
    assert "accuracy" in history(evaluate.offline_dir)[0]


def test_disabled_tracking_writes_nothing_and_takes_every_call(tmp_path):
    run = start_run(TrackingConfig(enabled=False), "x", {}, tmp_path / "run", job_type="train")
    run.log({"loss": 1.0}, step=1)
    run.table("t", ["a"], [[1]])
    run.finish()
    assert run.id is None and run.offline_dir is None and run.describe() is None
    assert not list(tmp_path.iterdir())


def test_online_without_a_key_is_refused_and_never_asks(tmp_path):
    with pytest.raises(ValueError, match="WANDB_API_KEY is not set"):
        start_run(TrackingConfig(mode="online"), "x", {}, tmp_path, job_type="train")


def test_auto_with_a_key_goes_offline_when_the_server_cannot_be_reached(tmp_path):
    # wandb reads its environment once a process, hence a process of its own.
    code = f"""
        from pathlib import Path
        from stagebeam import tracking
        from stagebeam.recipe import TrackingConfig
        tracking.INIT_TIMEOUT_S = 2.0
        run = tracking.start_run(TrackingConfig(), "x", {{}}, Path({str(tmp_path)!r}), job_type="t")
        run.log({{"loss": 1.0}})
        run.finish()
        print(run.describe()["mode"])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "platform"),
            "WANDB_API_KEY": "0" * 40,
            "WANDB_BASE_URL": "http://127.0.0.1:9",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.stdout.strip().endswith("offline"), done.stderr


def test_a_folder_keeps_its_runs_id(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = run_id(folder)
    assert run_id(folder) == first != run_id(tmp_path / "other")
