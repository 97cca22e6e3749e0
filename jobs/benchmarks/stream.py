"""How much of the machine the stream gets to work: `python -m jobs.benchmarks.stream`.

The ceiling is the family's `encode` alone (decode, resize, tile, tokenise, mask, pad) on rows that
are in memory, in as many plain processes as the stream has CPUs, with no Ray running. The stream
does the same calls from shards on disk to arrays in two consuming processes. Both are taken in
turn, pair after pair. What waits in the object store is taken with consumers that are slower than
the encoding, for one and for four times the rows.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Annotated, Any

import ray
import typer
from rich.console import Console

from jobs.benchmarks.figures import write_figures
from jobs.benchmarks.object_store import ObjectStore
from jobs.benchmarks.pictures import write_pictures
from jobs.cluster import ray_session
from stagebeam.data.heap import keep_freed_memory
from stagebeam.data.layout import TRAIN_SPLIT
from stagebeam.data.ledger import Plan
from stagebeam.data.shards import ShardReader
from stagebeam.data.stream import training_dataset, worker_batches
from stagebeam.models.families.mllama import MllamaEncoder

OUTPUT = Path("runs/bench/stream.json")
WORLD_SIZE, MICRO_BATCH, ACCUMULATION = 2, 4, 4  # 32 rows a step, as the paper trains
_WARM_UP_STEPS = 16  # until the encoders have mapped the object store
_EPOCHS = 3  # of the stream; the ceiling takes one
_NICENESS = 15  # Ray's workers have it; the ceiling's processes must not be favoured over them
_SLOW_S = 0.25  # a batch, for consumers that are slower than the encoding


@dataclass(frozen=True, slots=True)
class StreamBenchmark:
    """What `stream.json` holds. Rates are medians over the pairs, `ratio` of the pairs' ratios."""

    images_per_s: float
    ceiling_images_per_s: float
    ratio: float
    ratios: list[float]
    object_store_growth_4x: float  # peak bytes for four times the rows, over those for one
    object_store_bytes: dict[str, int]  # peak, by times the rows
    spilled_bytes: int
    cpus: int
    images: int
    bytes_per_image: int  # encoded, on disk


def plan_of(images: int) -> Plan:
    step = WORLD_SIZE * MICRO_BATCH * ACCUMULATION
    return Plan(images, step, WORLD_SIZE, ACCUMULATION)


def ceiling(shards: Path, encoder: MllamaEncoder, plan: Plan, processes: int) -> float:
    """Images a second of `encode` alone, in plain processes."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(
            target=_encode_share, args=(shards, encoder, plan, i, processes, barrier, results)
        )
        for i in range(processes)
    ]
    for worker in workers:
        worker.start()
    spans = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return _images(plan) / (max(end for _, end in spans) - min(start for start, _ in spans))


def _encode_share(
    shards: Path,
    encoder: MllamaEncoder,
    plan: Plan,
    share: int,
    shares: int,
    barrier: Barrier,
    results: Any,
) -> None:
    os.nice(_NICENESS)
    keep_freed_memory()  # as the stream's encoders do, or the ceiling would be a matter of luck
    reader = ShardReader(shards, TRAIN_SPLIT)
    batches = [
        reader.rows(plan.rank_rows(step, rank, micro))
        for step in range(share, plan.total_steps, shares)
        for rank in range(plan.world_size)
        for micro in range(plan.gradient_accumulation_steps)
    ]
    encoder(batches[0])
    barrier.wait()
    start = time.time()
    for batch in batches:
        encoder(batch)
    results.put((start, time.time()))


def _images(plan: Plan) -> int:
    return plan.total_steps * plan.global_batch_size


class _Consumer:
    """A rank that does nothing with its batches, or takes its time with each."""

    def read(self, shard: Any, plan: Plan, rank: int, seconds: float) -> list[float]:
        """When each step had come."""
        came = []
        for batch in worker_batches(shard, plan, rank, 0):
            assert len(batch.row_ids) == len(batch.arrays["input_ids"]) == MICRO_BATCH
            if batch.micro == 0:
                came.append(time.time())
            time.sleep(seconds)
        return came


def stream(shards: Path, encoder: MllamaEncoder, plan: Plan, seconds: float = 0.0) -> list[float]:
    """When each step's batches had come to all ranks, in a Ray session that is there."""
    dataset = training_dataset(shards, plan, 0, encoder, os.cpu_count() or 1)
    parts = dataset.streaming_split(plan.world_size, equal=True)
    actor: Any = ray.remote(num_cpus=0)(_Consumer)
    consumers = [actor.remote() for _ in parts]
    came = ray.get(
        [
            consumer.read.remote(part, plan, rank, seconds)
            for rank, (consumer, part) in enumerate(zip(consumers, parts, strict=True))
        ]
    )
    for consumer in consumers:
        ray.kill(consumer)
    return [max(times) for times in zip(*came, strict=True)]


def stream_rate(shards: Path, encoder: MllamaEncoder, plan: Plan) -> float:
    """Images a second that reach the ranks once the workers run."""
    with ray_session():
        came = stream(shards, encoder, plan)[_WARM_UP_STEPS:]
    return (len(came) - 1) * plan.global_batch_size / (came[-1] - came[0])


def waiting_bytes(shards: Path, encoder: MllamaEncoder, plan: Plan) -> tuple[int, int]:
    """Peak bytes in the object store, and bytes spilled, where the ranks are slow."""
    with ray_session(), ObjectStore() as store:
        stream(shards, encoder, plan, _SLOW_S)
    return store.peak_bytes, store.spilled_bytes


def run(images: int, pairs: int, console: Console) -> StreamBenchmark:
    """All of it. `images` is the smaller number of rows; rates are taken with four times it."""
    cpus = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        shards, encoder, size = write_pictures(Path(folder), 4 * images)
        plan = plan_of(4 * images)
        rates: list[tuple[float, float]] = []
        for pair in range(pairs):
            streamed = stream_rate(shards, encoder, replace(plan, epochs=_EPOCHS))
            rates.append((streamed, ceiling(shards, encoder, plan, cpus)))
            console.print(f"pair {pair + 1}: {_told(rates[-1:])}")
        once = Path(folder) / "once"
        waiting = {}
        spilled = 0
        for times, rows in (("1x", images), ("4x", 4 * images)):
            some = shards if times == "4x" else write_pictures(once, images)[0]
            waiting[times], more = waiting_bytes(some, encoder, plan_of(rows))
            spilled += more
            console.print(f"{times}: {waiting[times] / 2**20:.0f} MiB at most in the object store")
    ratios = [streamed / alone for streamed, alone in rates]
    return StreamBenchmark(
        images_per_s=statistics.median(streamed for streamed, _ in rates),
        ceiling_images_per_s=statistics.median(alone for _, alone in rates),
        ratio=statistics.median(ratios),
        ratios=ratios,
        object_store_growth_4x=waiting["4x"] / waiting["1x"],
        object_store_bytes=waiting,
        spilled_bytes=spilled,
        cpus=cpus,
        images=4 * images,
        bytes_per_image=size,
    )


def _told(rates: Sequence[tuple[float, float]]) -> str:
    streamed, alone = rates[0]
    return f"{streamed:.1f} images/s of {alone:.1f}, ratio {streamed / alone:.3f}"


def main(
    images: Annotated[int, typer.Option(min=128, help="Rows; four times as many too.")] = 512,
    pairs: Annotated[int, typer.Option(min=1, help="Times that both rates are taken.")] = 3,
    output: Annotated[Path, typer.Option(help="Figures as JSON.")] = OUTPUT,
) -> None:
    """Measure the stream against the same work without Ray."""
    console = Console()
    measured = run(images, pairs, console)
    write_figures(measured, output, console)


if __name__ == "__main__":
    typer.run(main)
