"""What a run will take, predicted from its recipe: memory, steps, tokens, time, checkpoints.

No GPU is touched and no weight is opened. Rows come from a sample of the shards, or without shards
from `data.max_length`, as if every row were that long and had an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stagebeam.data.ledger import Plan
from stagebeam.models.encoder import Arrays
from stagebeam.recipe import Recipe
from stagebeam.train_config import TrainConfig
from stagebeam.training.activations import activations, flows, full_rows
from stagebeam.training.memory import MASTER, MOMENTS, Memory, element_size, memory
from stagebeam.training.outline import Outline, local_folder, outline
from stagebeam.training.sample import Sample, Sampler

KEPT_CHECKPOINTS = 2  # as `training/launch.py` asks of Ray Train
TYPICAL = 0.95  # share of the rows that a typical micro-batch is at least as long as
MFU_MARGIN = 0.1  # either way, for the range of hours


@dataclass(frozen=True, slots=True)
class BatchMemory:
    """A rank's memory on one kind of micro-batch."""

    rows: str  # which rows
    tokens: int  # of its longest row
    memory: Memory


@dataclass(frozen=True, slots=True)
class Work:
    """Steps and what they cost. Row figures are means of the sample."""

    steps: int | None  # None: not known without shards
    epochs: int
    rows: int | None  # that an epoch reads
    tokens_a_row: float
    learnt_a_row: float | None  # tokens with loss
    forward_flops: dict[str, float]  # of a step, by group
    model_flops: float  # of a step: forward and backward
    hardware_flops: float  # and the forward pass again where it is recomputed


@dataclass(frozen=True, slots=True)
class Duration:
    """Hours at an assumed share of the devices' peak; `low` and `high` at 0.1 more and less."""

    mfu: float
    tflops: float  # peak of one device
    devices: int
    hours: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Disk:
    """What is written, bytes."""

    checkpoint: float  # fp32 weights and two moments of what is trained
    checkpoint_a_rank: float
    kept: int
    export: float  # all weights in the compute dtype


@dataclass(frozen=True, slots=True)
class Estimate:
    """The prediction of one run."""

    name: str
    parameters: dict[str, int]  # by group, adapters included
    trained: dict[str, int]
    micro_batch: int  # rows
    batches: tuple[BatchMemory, ...]
    sample: Sample | None
    work: Work
    duration: Duration | None  # None where no peak is given
    disk: Disk


def estimate(
    recipe: Recipe,
    train: TrainConfig,
    plan: Plan | None,
    *,
    rows: int = 256,
    tflops: float | None = None,
    mfu: float = 0.35,
) -> Estimate:
    """Predict the run of a recipe.

    `plan` is the order of its shards, None where there are none; `rows` are then sampled (0: all).
    `tflops` is the dense peak of one device in the compute dtype, the recipe's where it is None.

    Raises ValueError where the model's config is not on this disk or of another family, where
    shards are incomplete, or where the layers of the family are not known.
    """
    folder = local_folder(recipe.model.path)
    model = outline(folder, recipe.model, train)
    share = train.num_workers * train.gradient_accumulation_steps
    micro = train.global_batch_size // share
    batches: dict[str, Arrays]
    sample = None
    if plan is None:
        arrays = full_rows(model, micro, recipe.data.max_length)
        batches = {"full rows": arrays}
        counted = model.family.flops(model.config, arrays)
        forward = {group: getattr(counted, group) / micro for group in counted.__slots__}
    else:
        sampler = Sampler(recipe, train, folder, model.family)
        sample = sampler.draw(rows)
        likes = {"95 % of rows": TYPICAL, "longest sampled": 1.0}
        batches = {name: sampler.batch_like(sample, like) for name, like in likes.items()}
        forward = sample.forward_flops
    work = _work(model, recipe, train, plan, sample, forward)
    peak = tflops or train.peak_tflops
    return Estimate(
        name=recipe.name,
        parameters=model.count(),
        trained=model.count(trained=True),
        micro_batch=micro,
        batches=tuple(_on(model, recipe, train, *batch) for batch in batches.items()),
        sample=sample,
        work=work,
        duration=duration(work, train.num_workers, peak, mfu) if peak else None,
        disk=disk(model, recipe, train),
    )


def _on(
    model: Outline, recipe: Recipe, train: TrainConfig, rows: str, arrays: Arrays
) -> BatchMemory:
    size = element_size(recipe.model)
    saved = activations(model, arrays, size, train.gradient_checkpointing)
    held = memory(model.weights, recipe.model, train, saved)
    return BatchMemory(rows, arrays["input_ids"].shape[1], held)


def _work(
    model: Outline,
    recipe: Recipe,
    train: TrainConfig,
    plan: Plan | None,
    sample: Sample | None,
    forward: Mapping[str, float],
) -> Work:
    step = {group: flops * train.global_batch_size for group, flops in forward.items() if flops}
    once, again = passes(model, train)
    return Work(
        steps=plan.total_steps if plan else train.max_steps,
        epochs=train.epochs,
        rows=plan.epoch_length if plan else None,
        tokens_a_row=float(sample.lengths.mean()) if sample else recipe.data.max_length,
        learnt_a_row=float(sample.learnt.mean()) if sample else None,
        forward_flops=step,
        model_flops=sum(flops * once[group] for group, flops in step.items()),
        hardware_flops=sum(
            flops * (once[group] + (group in again)) for group, flops in step.items()
        ),
    )


def passes(model: Outline, train: TrainConfig) -> tuple[dict[str, int], set[str]]:
    """How often the forward FLOPs of each group are spent, and which groups are recomputed.

    Once forward, once for gradients that flow through, once for gradients of weights; adapters
    are left out, they are less than a hundredth of a layer.
    """
    flowing = flows(model)
    whole = {} if train.lora else model.count(trained=True)
    counts = {group: 1 + (group in flowing) + bool(whole.get(group)) for group in model.count()}
    again = {g for g in flowing if train.gradient_checkpointing and model.recomputes(g)}
    return counts, again


def duration(work: Work, devices: int, tflops: float, mfu: float) -> Duration | None:
    """Hours of all steps; None where their number is not known.

    As MFU is defined, recomputation is not counted as work (PaLM, arXiv 2204.02311, appendix B).
    """
    if work.steps is None:
        return None

    def hours(share: float) -> float:
        assert work.steps is not None
        return work.steps * work.model_flops / (devices * tflops * 1e12 * share) / 3600

    low, high = hours(min(1.0, mfu + MFU_MARGIN)), hours(max(mfu / 2, mfu - MFU_MARGIN))
    return Duration(mfu, tflops, devices, hours(mfu), low, high)


def disk(model: Outline, recipe: Recipe, train: TrainConfig) -> Disk:
    """Sizes of a checkpoint and of the exported model."""
    checkpoint = float((MASTER + MOMENTS) * sum(w.numel for w in model.weights if w.trained))
    # adapters are merged into the weights that they belong to
    exported = sum(w.numel for w in model.weights if not (train.lora and w.trained))
    return Disk(
        checkpoint=checkpoint,
        checkpoint_a_rank=checkpoint / train.num_workers,
        kept=KEPT_CHECKPOINTS,
        export=float(exported * element_size(recipe.model)),
    )


def as_json(made: Estimate) -> dict[str, Any]:
    """The prediction as a JSON object; bytes, FLOPs and hours as numbers."""
    sample = made.sample
    return {
        "predicted": True,
        "name": made.name,
        "parameters": made.parameters,
        "trained": made.trained,
        "micro_batch": made.micro_batch,
        "memory": [
            {
                "rows": batch.rows,
                "tokens": batch.tokens,
                "peak_bytes": batch.memory.peak,
                "host_bytes": batch.memory.host,
                "parts": [
                    {"name": p.name, "when": p.phase, "device": p.device, "host": p.host}
                    for p in batch.memory.parts
                ],
            }
            for batch in made.batches
        ],
        "sampled_rows": None if sample is None else len(sample.lengths) + len(sample.refused),
        "work": {name: getattr(made.work, name) for name in Work.__slots__},
        "duration": made.duration
        and {name: getattr(made.duration, name) for name in Duration.__slots__},
        "disk": {name: getattr(made.disk, name) for name in Disk.__slots__},
    }
