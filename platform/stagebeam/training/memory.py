"""Bytes that one rank holds in training, by part, before anything is started.

What is held where follows DeepSpeed 0.19 (`runtime/zero/stage3.py`, `stage_1_and_2.py`,
`fp16/*.py`) with torch's AdamW, and the sizes that the recipe leaves to DeepSpeed are read from its
own defaults. With n numbers in all, t of them trained, W ranks and s bytes an element in compute:

                        stage 0        stages 1, 2          stage 3
    weights             s n            s n                  s n/W, those of at most 100,000
                                                            numbers whole besides
    gradients           s t            s t/W                s t/W
    fp32 master         4 t if s = 2   4 t/W                4 t/W
    AdamW's moments     8 t            8 t/W                8 t/W

Stage 3 splits each weight by itself, stages 1 and 2 the trained ones laid end to end, so shares
are rounded up. Stage 1 has all gradients whole until the end of a backward pass. There is an fp32
master copy even of fp32 weights: stage 3 means to do without, but compares a `torch.device` with a
string, which is never equal. What is offloaded lies in host memory; with it the optimiser's fp32
gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stagebeam.recipe import ModelConfig
from stagebeam.train_config import TrainConfig
from stagebeam.training.activations import Activations
from stagebeam.training.outline import Weight
from stagebeam.training.zero import deepspeed_settings

MASTER, MOMENTS = 4, 8  # bytes a trained number: float32, and twice that

# When a part is there: always, from forward to backward, for a moment of either, at the step.
Phase = Literal["held", "kept", "logits", "recomputed", "step"]


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank holds of one kind, bytes."""

    name: str
    phase: Phase
    device: float
    host: float = 0.0


@dataclass(frozen=True, slots=True)
class Memory:
    """All parts of one rank."""

    parts: tuple[Part, ...]

    def total(self, *phases: Phase) -> float:
        """Bytes on the device of all parts of these phases."""
        return sum(part.device for part in self.parts if part.phase in phases)

    @property
    def peak(self) -> float:
        """Most bytes on the device at once: in the backward pass, or in the optimiser's step.

        The logits are gone before a layer is computed again, and all activations before the step.
        """
        moment = max(self.total("logits"), self.total("recomputed"))
        return self.total("held") + max(self.total("kept") + moment, self.total("step"))

    @property
    def host(self) -> float:
        """Bytes in host memory, of this rank."""
        return sum(part.host for part in self.parts)


def element_size(model: ModelConfig) -> int:
    """Bytes of a number in compute."""
    return {"float32": 4, "bfloat16": 2}[model.dtype]


def zero_config(model: ModelConfig, train: TrainConfig) -> Any:
    """DeepSpeed's settings with its defaults filled in.

    Raises ValueError where DeepSpeed refuses them.
    """
    # imported here: DeepSpeed takes its time, and picks an accelerator by its environment
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    return DeepSpeedZeroConfig(**deepspeed_settings(model, train)["zero_optimization"])


def memory(
    weights: Sequence[Weight], model: ModelConfig, train: TrainConfig, batch: Activations
) -> Memory:
    """What a rank holds when it trains these weights on micro-batches like `batch`."""
    size = element_size(model)
    states = _stage_3 if train.zero_stage == 3 else _whole_weights
    parts = states(weights, size, train, zero_config(model, train))
    kept = (Part(f"activations: {group}", "kept", n) for group, n in batch.kept.items())
    moments = (
        Part("log-probabilities", "kept", batch.log_probabilities),
        Part("images and masks", "kept", batch.images),
        Part("a layer computed again", "recomputed", batch.recomputed),
        Part("gradients of logits", "logits", batch.logits - batch.log_probabilities),
    )
    return Memory((*parts, *kept, *moments))


def _stage_3(weights: Sequence[Weight], size: int, train: TrainConfig, zero: Any) -> Iterable[Part]:
    world, offloaded = train.num_workers, train.offload != "none"
    trained = [w.numel for w in weights if w.trained]
    everything = [w.numel for w in weights]
    small = sum(n for n in everything if n <= zero.param_persistence_threshold)
    share, all_shares = _shares(trained, world), _shares(everything, world)
    yield _placed("weights", size * all_shares, train.offload == "all")
    if world > 1:  # alone, a rank uses its share as it is
        live = min(sum(everything) - small, max(zero.max_live_parameters, max(everything)))
        yield Part("small weights, whole", "held", size * small)
        yield Part("weights gathered", "kept", size * live)
    yield _placed("gradients", size * share, offloaded)
    # `contiguous_gradients`: reserved once, whatever the model's size
    yield Part("gradient bucket", "held", size * zero.reduce_bucket_size)
    moving = min(max(zero.reduce_bucket_size, max(trained)), sum(trained))
    # a copy in the order of the ranks, and what is being made next
    yield Part("gradients on their way", "recomputed", size * (moving * (world > 1) + max(trained)))
    yield _placed("fp32 master weights", MASTER * share, offloaded)
    yield _placed("AdamW moments", MOMENTS * share, offloaded)
    yield from _step(min(share, zero.sub_group_size), share, size, offloaded)


def _whole_weights(
    weights: Sequence[Weight], size: int, train: TrainConfig, zero: Any
) -> Iterable[Part]:
    """Stages 0, 1 and 2."""
    stage, offloaded = train.zero_stage, train.offload != "none"
    trained = sum(w.numel for w in weights if w.trained)
    everything = sum(w.numel for w in weights)
    world = train.num_workers if stage else 1
    share = math.ceil(trained / (2 * world)) * 2  # `nccl_start_alignment_factor`
    yield Part("weights", "held", size * everything)
    yield Part("gradients", "held", size * (share if stage else trained))
    if stage == 1:
        yield Part("gradients, whole", "recomputed", size * trained)
    if stage:
        buckets = 2 if zero.overlap_comm else 1
        yield Part("gradient bucket", "recomputed", size * zero.reduce_bucket_size * buckets)
    if stage or size == 2:
        yield _placed("fp32 master weights", MASTER * share, offloaded)
    yield _placed("AdamW moments", MOMENTS * share, offloaded)
    yield from _step(share, share, size, offloaded)


def _step(numel: int, share: int, size: int, offloaded: bool) -> Iterable[Part]:
    """AdamW's step over so many numbers at a time: fp32 gradients, their copy in the compute dtype,
    and the denominator. Offloaded, the gradients of the whole share stay."""
    if offloaded:
        yield Part("fp32 gradients and the step", "step", 0.0, 4.0 * (share + numel) + size * share)
    else:
        yield Part("fp32 gradients and the step", "step", (8.0 + size * (size == 2)) * numel)


def _placed(name: str, size: float, on_host: bool) -> Part:
    return Part(name, "held", 0.0, size) if on_host else Part(name, "held", size)


def _shares(sizes: Iterable[int], world: int) -> int:
    """Numbers that a rank has of weights that are each split by themselves."""
    return sum(math.ceil(n / world) for n in sizes)
