"""One rank of a training run without Ray: `python zero_rank.py FOLDER`, launched as torchrun would.

FOLDER holds `run.json` (model, train settings, seed of the scenes); the rank writes what it saw to
`rank-N.json`, and rank 0 the export to `export`. The scenes of a step follow from its number.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch.distributed as dist
from ranks import leave

from stagebeam.data.parcel import MicroBatch
from stagebeam.data.sources.scenes import draw
from stagebeam.models.encoder import Arrays, RowEncoder
from stagebeam.recipe import ModelConfig
from stagebeam.records import Example
from stagebeam.source_config import ScenesSource
from stagebeam.train_config import TrainConfig
from stagebeam.training.contracts import EvaluationReport, StepReport, Take

STEPS = 3
SAVED = 2  # the step after which a checkpoint is taken


def step_examples(step: int) -> list[Example]:
    """A global batch of four: one image, two images, and two rows without."""
    drawn = [e for e in draw(ScenesSource(rows=300)) if len(e.messages) == 2]
    one, two = [e for e in drawn if e.images][2 * step : 2 * step + 2]
    two = replace(two, images=two.images + one.images)
    return [one, two, *[e for e in drawn if not e.images][2 * step : 2 * step + 2]]


def micro_batches(
    encoder: RowEncoder, step: int, rank: int, world: int, accumulation: int
) -> list[Arrays]:
    """A rank's consecutive part of the batch: with two ranks, one sees no image at all."""
    size = 4 // (world * accumulation)
    examples = step_examples(step)
    starts = [(micro * world + rank) * size for micro in range(accumulation)]
    return [encoder(examples[start : start + size])[0] for start in starts]


class Recorder:
    """Keeps the reports, and checkpoints in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reports: list[StepReport] = []
        self.saved: list[int] = []

    def step(self, report: StepReport) -> None:
        self.reports.append(report)

    def evaluation(self, report: EvaluationReport) -> None:
        raise AssertionError("there are no held-out rows")

    def checkpoint(self, step: int, take: Take, loss: float | None) -> None:
        self.saved.append(step)
        (self.folder / "checkpoint").mkdir(exist_ok=True)
        take()(self.folder / "checkpoint")


def main(folder: Path) -> None:
    from stagebeam.models.registry import family_of
    from stagebeam.training.checkpoint import export
    from stagebeam.training.loop import Course, make_engine, run_steps
    from stagebeam.training.objectives import Supervised
    from stagebeam.training.shards import restore
    from stagebeam.training.zero import deepspeed_settings, load_partitioned

    run = json.loads((folder / "run.json").read_text())
    model_config = ModelConfig.model_validate(run["model"])
    train = TrainConfig.model_validate(run["train"])
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    settings = deepspeed_settings(model_config, train)
    family = family_of(model_config.path)
    encoder = family.encoder(model_config.path)
    model = load_partitioned(model_config.path, model_config.dtype, settings)
    model.train()
    engine = make_engine(Supervised(model, family, encoder), train, settings)

    def steps(start: int) -> Iterator[list[MicroBatch]]:
        for step in range(start, STEPS):
            share = micro_batches(encoder, step, rank, world, train.gradient_accumulation_steps)
            yield [MicroBatch(step, n, arrays, {}, []) for n, arrays in enumerate(share)]

    def train_from(start: int, recorder: Recorder) -> None:
        run_steps(engine, train, steps(start), recorder, Course(start, STEPS, lambda step: 0))

    recorder, resumed = Recorder(folder), Recorder(folder)
    train_from(0, recorder)
    export(engine, encoder, folder / "export", "{}")
    restore(engine, folder / "checkpoint")
    train_from(SAVED, resumed)
    seen = {
        "reports": [asdict(report) for report in recorder.reports],
        "resumed": [asdict(report) for report in resumed.reports],
        "saved": recorder.saved,
    }
    (folder / f"rank-{rank}.json").write_text(json.dumps(seen))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
