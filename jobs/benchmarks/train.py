"""What the platform adds to a training step: `python -m jobs.benchmarks.train`.

The same model, rows, ranks and DeepSpeed settings twice, in turn: under Ray Train with the stream
(what `jobs.train` runs), and as the barest loop there is, plain processes under torch.distributed
that call DeepSpeed's engine on batches which lie in memory. Both have the niceness that Ray gives
its workers. Then once more with a rank less than there are cores, so that Ray's own processes have
one to run on, as they have beside GPUs.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jobs.benchmarks import bare_training
from jobs.benchmarks.figures import write_figures
from jobs.benchmarks.mid_size import ROWS_A_STEP, build_mid_size, plan_of, write_scenes
from jobs.cluster import ray_session
from stagebeam.models.registry import family_of
from stagebeam.recipe import ModelConfig
from stagebeam.storage import remove_tree
from stagebeam.train_config import TrainConfig
from stagebeam.training.contracts import EvaluationReport, StepReport
from stagebeam.training.launch import Job, fit, worker_environment
from stagebeam.training.tasks import SupervisedTask

OUTPUT = Path("runs/bench/train.json")
_WIDTH, _LAYERS = 512, 8  # a step of some two seconds on two cores
_WARM_UP_STEPS = 3  # caches, and DeepSpeed's trace of which weights come when
_NICENESS = 15  # Ray's workers have it


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Of one number of ranks: medians over the pairs, and every pair."""

    world_size: int
    step_time_ratio: float  # under Ray with the stream, over bare; of mean step times
    step_time_ratios: list[float]
    data_wait_fraction: float  # of the time of steps under Ray
    data_wait_fractions: list[float]
    step_time_p50_s: float  # under Ray
    bare_step_time_p50_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBenchmark(World):
    """What `train.json` holds."""

    core_to_spare: World | None  # with fewer ranks than cores; None where the first has that
    params: int
    rows_a_step: int
    steps: int  # measured in each run
    cpus: int


def job_of(folder: Path, world_size: int, steps: int, run: int) -> Job:
    """One run on the model and the shards in `folder`."""
    train = TrainConfig(
        output_dir=folder / f"run-{run}",
        num_workers=world_size,
        use_gpu=False,
        cpus_per_worker=0.7,
        encoders=1,
        zero_stage=3,
        global_batch_size=ROWS_A_STEP,
        gradient_checkpointing=False,
        checkpoint_every=10**6,
    )
    model = ModelConfig(path=str(folder / "model"), dtype="float32")
    shards = folder / "shards"
    plan = plan_of(shards, world_size, steps + _WARM_UP_STEPS)
    encoder = family_of(model.path).encoder(model.path)
    return Job(
        "bench", model, train, SupervisedTask(shards=shards, plan=plan, encoder=encoder), "{}"
    )


def with_ray(job: Job) -> list[StepReport]:
    """Every step's report of a run of the real job, without the first ones."""
    reports: list[StepReport] = []

    def keep(report: StepReport | EvaluationReport) -> None:
        assert isinstance(report, StepReport)
        reports.append(report)

    with ray_session():
        fit(job, keep)
    return reports[_WARM_UP_STEPS:]


def bare(job: Job, folder: Path) -> list[float]:
    """Seconds of the same steps without the platform."""
    world_size = job.train.num_workers
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        **os.environ,
        **worker_environment(job),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world_size),
        "LOCAL_SIZE": str(world_size),
    }
    (folder / "bare.json").write_text(
        json.dumps(
            {
                "model": job.model.model_dump(mode="json"),
                "train": job.train.model_dump(mode="json"),
                "shards": str(folder / "shards"),
                "steps": job.task.plan.total_steps,
            }
        )
    )
    command = [sys.executable, "-m", bare_training.__name__, str(folder / "bare.json")]
    ranks = [
        subprocess.Popen(
            ["nice", "-n", str(_NICENESS), *command],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(world_size)
    ]
    out, _ = ranks[0].communicate()
    if any(rank.wait() for rank in ranks):
        raise RuntimeError("A rank of the bare loop failed.")
    seconds: list[float] = json.loads(out.splitlines()[-1])
    return seconds[_WARM_UP_STEPS:]


def measure(folder: Path, world_size: int, steps: int, pairs: int, console: Console) -> World:
    """Pairs of runs on the model and the shards in `folder`."""
    ratios, waits, ours, theirs = [], [], [], []
    for pair in range(pairs):
        job = job_of(folder, world_size, steps, pair)
        reports = with_ray(job)
        seconds = [report.seconds for report in reports]
        remove_tree(job.train.output_dir)
        plain = bare(job, folder)
        ratios.append(statistics.mean(seconds) / statistics.mean(plain))
        waits.append(sum(report.data_wait_seconds for report in reports) / sum(seconds))
        ours.append(statistics.median(seconds))
        theirs.append(statistics.median(plain))
        console.print(f"{world_size} ranks, {_told(pair, ratios, waits, ours, theirs)}")
    return World(
        world_size=world_size,
        step_time_ratio=statistics.median(ratios),
        step_time_ratios=ratios,
        data_wait_fraction=statistics.median(waits),
        data_wait_fractions=waits,
        step_time_p50_s=statistics.median(ours),
        bare_step_time_p50_s=statistics.median(theirs),
    )


def run(folder: Path, world_size: int, steps: int, pairs: int, console: Console) -> TrainBenchmark:
    """All of it, in `folder`."""
    params = build_mid_size(folder / "model", _WIDTH, _LAYERS)
    write_scenes(folder / "shards", ROWS_A_STEP * (steps + _WARM_UP_STEPS))
    cpus = os.cpu_count() or 1
    first = measure(folder, world_size, steps, pairs, console)
    roomy = None
    if 1 < cpus <= world_size:
        roomy = measure(folder, cpus - 1, steps, pairs, console)
    return TrainBenchmark(
        **asdict(first),
        core_to_spare=roomy,
        params=params,
        rows_a_step=ROWS_A_STEP,
        steps=steps,
        cpus=cpus,
    )


def _told(pair: int, *columns: Sequence[float]) -> str:
    ratio, wait, ours, theirs = (column[-1] for column in columns)
    return (
        f"pair {pair + 1}: {ours:.2f} s a step, bare {theirs:.2f} s; ratio of means {ratio:.3f}, "
        f"waiting for data {wait:.2%}"
    )


def main(
    steps: Annotated[int, typer.Option(min=2, help="Measured steps of each run.")] = 8,
    pairs: Annotated[int, typer.Option(min=1, help="Times that both are run.")] = 3,
    world_size: Annotated[int, typer.Option(min=1, help="Ranks.")] = 2,
    output: Annotated[Path, typer.Option(help="Figures as JSON.")] = OUTPUT,
) -> None:
    """Measure a training step under Ray with the stream beside the same step without."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        measured = run(Path(folder), world_size, steps, pairs, console)
    write_figures(measured, output, console)


if __name__ == "__main__":
    typer.run(main)
