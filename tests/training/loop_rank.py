"""One rank that trains a little in several ways: `python loop_rank.py FOLDER`.

FOLDER/run.json holds scenarios, each with an engine of its own, one after the other; what came of
each goes to `rank-N.json` under its name, and its export to a folder of that name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import zero_rank
from ranks import leave

from stagebeam.data.parcel import MicroBatch
from stagebeam.models.encoder import RowEncoder
from stagebeam.models.family import Family, Normalisation, Tensors
from stagebeam.models.registry import family_of
from stagebeam.recipe import ModelConfig
from stagebeam.train_config import TrainConfig
from stagebeam.training.checkpoint import export
from stagebeam.training.contracts import EvaluationReport, StepReport, Take
from stagebeam.training.heldout import HeldOut
from stagebeam.training.loop import Course, make_engine, run_steps
from stagebeam.training.objectives import Supervised
from stagebeam.training.zero import deepspeed_settings, open_for_training

STEPS = 2


class Recorder:
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.steps: list[StepReport] = []
        self.evaluations: list[EvaluationReport] = []

    def step(self, report: StepReport) -> None:
        self.steps.append(report)

    def evaluation(self, report: EvaluationReport) -> None:
        self.evaluations.append(report)

    def checkpoint(self, step: int, take: Take, loss: float | None) -> None:
        raise AssertionError("no checkpoint is due")


def poisoned(family: Family) -> Family:
    """The family, but a row marked in `poison` [B] has no finite logits."""

    def forward(model: Any, batch: Tensors, normalisation: Normalisation) -> torch.Tensor:
        logits = family.forward(model, batch, normalisation)
        return torch.where(batch["poison"].bool()[:, None, None], torch.nan, logits)

    return replace(family, forward=forward)


def shares(encoder: RowEncoder, poison: str | None) -> Iterator[list[MicroBatch]]:
    """This rank's part of each step."""
    for step in range(STEPS):
        examples = zero_rank.step_examples(step)[dist.get_rank() :: dist.get_world_size()]
        arrays, refused = encoder(examples)
        row_ids = [example.id for example in examples]
        if poison is not None:
            arrays["poison"] = np.array([row_id == poison for row_id in row_ids], np.int64)
        yield [MicroBatch(step, 0, arrays, refused, row_ids)]


def play(scenario: dict[str, Any], folder: Path) -> dict[str, Any]:
    train = TrainConfig.model_validate(
        {
            "output_dir": str(folder),
            "num_workers": dist.get_world_size(),
            "use_gpu": False,
            "global_batch_size": 4,
            "learning_rate": 1e-3,
            "schedule": "constant",
        }
        | scenario["train"]
    )
    model_config = ModelConfig(path=scenario["model"], dtype="float32")
    family, poison = family_of(model_config.path), scenario.get("poison")
    encoder = family.encoder(model_config.path)
    settings = deepspeed_settings(model_config, train)
    model = open_for_training(model_config, train, family, settings, seed=0)
    objective = Supervised(model, poisoned(family) if poison else family, encoder)
    engine = make_engine(objective, train, settings)
    held_out = train.evaluation and HeldOut(train.evaluation, encoder, lambda e: e, 2)
    course = Course(0, STEPS, lambda step: 0, held_out=held_out or None)
    recorder, fault = Recorder(), None
    try:
        run_steps(engine, train, shares(encoder, poison), recorder, course)
    except FloatingPointError as error:
        fault = str(error)
    out = folder / scenario["name"]
    export(engine, encoder, out, "{}", train.lora)
    batch = {key: torch.tensor(v) for key, v in encoder(zero_rank.step_examples(0))[0].items()}
    with torch.no_grad():
        engine.eval()
        logprobs = [] if poison else engine(call="row_logprobs", **batch).tolist()
    return {
        "fault": fault,
        "steps": [asdict(report) for report in recorder.steps],
        "evaluations": [asdict(report) for report in recorder.evaluations],
        "logprobs": logprobs,
    }


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    run = json.loads((folder / "run.json").read_text())
    seen = {scenario["name"]: play(scenario, folder) for scenario in run["scenarios"]}
    (folder / f"rank-{dist.get_rank()}.json").write_text(json.dumps(seen))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
