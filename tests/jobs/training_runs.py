"""The real training job in a process of its own, with what it did written down.

Run as a program (`python -m tests.jobs.training_runs RECIPE FOLDER REST`) it is `jobs.train`, Ray
cluster and all, with two things added: the driver writes each step's figures to FOLDER/steps.jsonl
instead of to W&B, and each rank writes to FOLDER/reads.jsonl which rows it takes in which step,
after a rest of REST seconds. Both files outlive a kill, and show it. The rest is the time that a
step of a larger model would take: without it a run of two dozen steps is over before Ray Train has
committed a checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import yaml

from jobs import train
from stagebeam.tracking import Run
from stagebeam.training.contracts import OnRefused, Step
from stagebeam.training.tasks import SupervisedTask

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "jobs" / "recipes" / "quickstart.yaml"
STEPS = 24
BATCH = 8
CHECKPOINT_EVERY = 3
_TRACE, _REST = "STAGEBEAM_TEST_TRACE", "STAGEBEAM_TEST_REST"  # what the ranks inherit
_TIME_LIMIT = 300  # seconds for a start of the job or for a step to come
_TOLD = 4000  # characters of a failed job's output


def write_recipe(folder: Path, name: str, **changes: Any) -> Path:
    """The quick start's generator, smaller: 15 and a half batches an epoch, so that a batch lies
    across the epochs' border. All recipes of a folder share data and base model."""
    settings = yaml.safe_load(QUICKSTART.read_text().replace("runs/quickstart", str(folder)))
    settings["model"]["tiny_layers"] = 2
    settings["data"]["sources"] = [{**settings["data"]["sources"][0], "rows": 124}]
    settings["train"].update(
        evaluation=None,
        output_dir=str(folder / name),
        global_batch_size=BATCH,
        epochs=2,
        max_steps=STEPS,
        warmup_steps=4,
        checkpoint_every=CHECKPOINT_EVERY,
        **changes,
    )
    for section in ("judge_training", "serve", "search", "evaluation"):
        del settings[section]
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@contextlib.contextmanager
def prepared() -> Iterator[Path]:
    """A folder with shards and a base model for its recipes. Its name is short, so that Ray's
    session lies inside it and what is left behind shows."""
    with TemporaryDirectory(prefix="t", dir="/tmp") as name:
        folder = Path(name)
        (folder / "t").mkdir()
        recipe = write_recipe(folder, "unused")
        _ended(_start(folder, "jobs.prepare", str(recipe)))
        settings = train.load_recipe(recipe)
        train.ensure_model(settings.model, settings.data.shards, settings.seed)
        yield folder


class Training:
    """One run of a recipe, over all its starts."""

    def __init__(self, recipe: Path, rest: float = 0.0) -> None:
        self.output = recipe.with_suffix("")
        self._recipe, self._rest = recipe, rest
        self._trace = recipe.with_suffix(".trace")
        self._trace.mkdir()
        self._job: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = (str(self._recipe), str(self._trace), str(self._rest))
        self._job = _start(self._recipe.parent, "tests.jobs.training_runs", *arguments)

    def end(self) -> None:
        """Wait until the job has ended well."""
        assert self._job is not None
        _ended(self._job)

    def complete(self) -> None:
        self.start()
        self.end()

    def kill(self) -> None:
        """End the job with everything that it started, as a machine that goes down would."""
        if self._job is not None and self._job.poll() is None:
            _kill_family(psutil.Process(self._job.pid))
            self._job.wait()

    def wait_for_read(self, rank: int, step: int, dead: set[int]) -> int:
        """The process that takes this step as this rank, once one that is not dead does."""
        assert self._job is not None
        limit = time.monotonic() + _TIME_LIMIT
        while time.monotonic() < limit and self._job.poll() is None:
            for read in self.reads():
                if (read["rank"], read["step"]) == (rank, step) and read["pid"] not in dead:
                    return int(read["pid"])
            time.sleep(0.01)
        raise AssertionError(f"rank {rank} never took step {step}: {_output(self._job)}")

    def steps(self) -> list[dict[str, Any]]:
        """What the driver was told of each step, in the order in which it was told."""
        return _lines(self._trace / "steps.jsonl")

    def losses(self) -> list[float]:
        return [step["train/loss"] for step in self.steps()]

    def reads(self) -> list[dict[str, Any]]:
        """Who took which rows for which step: `pid`, `rank`, `step` (from 1), `rows`, `at` s."""
        return _lines(self._trace / "reads.jsonl")

    @property
    def weights(self) -> Path:
        return self.output / "model" / "model.safetensors"

    def ledger(self) -> dict[str, Any]:
        """Of the last checkpoint."""
        folders = sorted((self.output / "checkpoints" / "train").glob("step-*/ledger.json"))
        return dict(json.loads(folders[-1].read_text()))


def _start(folder: Path, module: str, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}",
        "RAY_AUTH_MODE": "disabled",
        "TMPDIR": str(folder / "t"),  # a short path, so Ray's session lies in it too
    }
    environment.pop("RAY_ADDRESS", None)
    with (folder / f"{module}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=environment,
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _ended(job: subprocess.Popen[bytes]) -> None:
    assert job.wait(_TIME_LIMIT) == 0, _output(job)


def _output(job: subprocess.Popen[bytes]) -> str:
    module, recipe = job.args[2:4]  # type: ignore[index]
    return (Path(recipe).parent / f"{module}.log").read_text()[-_TOLD:]


def _kill_family(root: psutil.Process) -> None:
    """All are stopped before the first is killed, so that none sees another die and tidies up, or
    starts a new one."""
    stopped: list[psutil.Process] = []
    while fresh := [p for p in (root, *root.children(recursive=True)) if p not in stopped]:
        for process in fresh:
            _signal(process, signal.SIGSTOP)
        stopped += fresh
    for process in stopped:
        _signal(process, signal.SIGKILL)
    limit = time.monotonic() + 10
    while (alive := [p for p in stopped if _alive(p)]) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not alive, alive


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def _lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines; a last one that is being written, or was when its process died, is left out."""
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(dict(entry)) + "\n")


class _WrittenRun(Run):
    """Metrics as JSON lines."""

    def __init__(self, path: Path) -> None:
        super().__init__(None)
        self._path = path

    def log(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        _append(self._path, metrics)


class TracedTask(SupervisedTask):
    """The same task; the ranks write down what they read."""

    def steps(self, shard: Any, start: int, rank: int, on_refused: OnRefused) -> Iterator[Step]:
        path, rest = Path(os.environ[_TRACE]) / "reads.jsonl", float(os.environ[_REST])
        for step, taken in enumerate(super().steps(shard, start, rank, on_refused), start + 1):
            time.sleep(rest)
            rows = [row for batch in taken for row in batch.row_ids]
            entry = {"pid": os.getpid(), "rank": rank, "step": step, "rows": rows}
            _append(path, {**entry, "at": time.time()})
            yield taken


def main(recipe: str, folder: str, rest: str) -> None:
    # by the name that the ranks import it by
    from tests.jobs.training_runs import TracedTask

    os.environ |= {_TRACE: folder, _REST: rest}
    changed: Any = train
    changed.start_run = lambda *_, **__: _WrittenRun(Path(folder) / "steps.jsonl")
    changed.SupervisedTask = TracedTask
    train.main(Path(recipe))


if __name__ == "__main__":
    main(*sys.argv[1:])
