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
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import yaml

from jobs import runs, train
from stagebeam.tracking import Run
from stagebeam.training.contracts import OnRefused, Step
from stagebeam.training.tasks import SupervisedTask
from tests.job_process import ROOT, end_of, start_job
from tests.processes import kill_family

QUICKSTART = ROOT / "jobs" / "recipes" / "quickstart.yaml"
STEPS = 24
BATCH = 8
CHECKPOINT_EVERY = 3
# Another division of a step sums float32 in another order, which the steps then carry on: AdamW
# divides by the gradient's size, so where a gradient is nearly zero its rounding error moves the
# weight. Seen after 24 steps: 2e-7 of losses and 6e-7 of norms.
CLOSE = 1e-5  # relative, of losses
# Ray Train commits a checkpoint when it next looks at its workers, every two seconds.
UNCOMMITTED = 6  # steps that a run takes meanwhile, with a rest of half a second
_TIME_LIMIT = 600  # seconds for a start of the job or for a step to come


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
    """One run of a recipe, over all its starts, in a cluster of its own or at an address."""

    def __init__(self, recipe: Path, rest: float = 0.0, address: str | None = None) -> None:
        self.output = recipe.with_suffix("")
        self._recipe, self._rest = recipe, rest
        self._env = {} if address is None else {"RAY_ADDRESS": address}
        self._trace = recipe.with_suffix(".trace")
        self._trace.mkdir()
        self._job: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = (str(self._recipe), str(self._trace), str(self._rest))
        module = "tests.jobs.training_runs"
        self._job = _start(self._recipe.parent, module, *arguments, **self._env)

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
            kill_family(psutil.Process(self._job.pid))
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
        """Who took which rows for which step: `pid`, `rank` of `ranks`, `step` (from 1), `rows`,
        `at` s."""
        return _lines(self._trace / "reads.jsonl")

    def rows(self) -> dict[int, list[str]]:
        """What each step came to read, over all ranks, in order: after the last that took it."""
        last = {read["step"]: read["ranks"] for read in self.reads()}
        found = {(read["step"], read["rank"]): read["rows"] for read in self.reads()}
        return {
            step: sorted(row for rank in range(ranks) for row in found[step, rank])
            for step, ranks in last.items()
        }

    def hold(self, step: int) -> None:
        """No rank goes past this step until `release`."""
        (self._trace / "hold").write_text(str(step))

    def release(self) -> None:
        (self._trace / "hold").unlink()

    @property
    def weights(self) -> Path:
        return self.output / "model" / "model.safetensors"

    def ledger(self) -> dict[str, Any]:
        """Of the last checkpoint."""
        folders = sorted((self.output / "checkpoints" / "train").glob("step-*/ledger.json"))
        return dict(json.loads(folders[-1].read_text()))


def _start(folder: Path, module: str, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
    log = _log_of(folder, module)
    log.unlink(missing_ok=True)
    # a short path, so Ray's session lies in it too
    return start_job(log, module, *arguments, TMPDIR=str(folder / "t"), **env)


def _ended(job: subprocess.Popen[bytes]) -> None:
    assert job.wait(_TIME_LIMIT) == 0, _output(job)


def _output(job: subprocess.Popen[bytes]) -> str:
    module, recipe = job.args[2:4]  # type: ignore[index]
    return end_of(_log_of(Path(recipe).parent, module))


def _log_of(folder: Path, module: str) -> Path:
    return folder / f"{module}.log"


def _lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines; a last one that is being written, or was when its process died, is left out."""
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(dict(entry)) + "\n")


def expect_same_steps(run: Training, unbroken: Training) -> None:
    """Every step was told, and each time it was told it came to the same."""
    figures = ("train/loss", "train/grad_norm", "train/learning_rate")
    told: dict[int, set[tuple[float, ...]]] = {step: set() for step in range(1, STEPS + 1)}
    for step in run.steps():
        told[step["train/step"]].add(tuple(step[name] for name in figures))
    expected = {s["train/step"]: {tuple(s[name] for name in figures)} for s in unbroken.steps()}
    assert told == expected


def steps_repeated(run: Training) -> list[int]:
    """How many whole steps were done once more after each kill."""
    first: dict[int, int] = {}  # by process
    last: dict[int, int] = {}
    for read in run.reads():
        if read["rank"] == 0:
            first.setdefault(read["pid"], read["step"])
            last[read["pid"]] = read["step"]
    return [last[before] - first[after] for before, after in pairwise(first)]


class _WrittenRun(Run):
    """Metrics as JSON lines."""

    def __init__(self, path: Path) -> None:
        super().__init__(None)
        self._path = path

    def log(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        _append(self._path, metrics)


@dataclass(frozen=True, kw_only=True)
class TracedTask(SupervisedTask):
    """The same task; the ranks write down what they read."""

    trace: Path
    rest: float

    def steps(self, shard: Any, start: int, rank: int, on_refused: OnRefused) -> Iterator[Step]:
        for step, taken in enumerate(super().steps(shard, start, rank, on_refused), start + 1):
            time.sleep(self.rest)
            rows = [row for batch in taken for row in batch.row_ids]
            who = {"pid": os.getpid(), "rank": rank, "ranks": self.plan.world_size}
            what = {"step": step, "rows": rows, "at": time.time()}
            _append(self.trace / "reads.jsonl", {**who, **what})
            while self._held(step):
                time.sleep(0.1)
            yield taken

    def _held(self, step: int) -> bool:
        try:
            return step >= int((self.trace / "hold").read_text() or 0)
        except FileNotFoundError:
            return False


def main(recipe: str, folder: str, rest: str) -> None:
    # by the name that the ranks import it by
    from tests.jobs.training_runs import TracedTask

    trace = Path(folder)
    tracking: Any = runs
    tracking.start_run = lambda *_, **__: _WrittenRun(trace / "steps.jsonl")
    changed: Any = train
    changed.SupervisedTask = partial(TracedTask, trace=trace, rest=float(rest))
    train.main(Path(recipe))


if __name__ == "__main__":
    main(*sys.argv[1:])
