"""The train section of a recipe."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from stagebeam.schema import Fraction, PositiveInt, Section
from stagebeam.storage import Place

Group = Literal["vision", "projector", "cross_attention", "language"]


class LoraConfig(Section):
    """Low-rank adapters by `peft` on the linear layers of some groups, merged in the export."""

    rank: PositiveInt = Field(16, description="Rank of an adapter.")
    alpha: PositiveInt = Field(32, description="Adapters are scaled by alpha / rank.")
    dropout: Fraction = Field(0.0, description="Dropout before an adapter.")
    groups: tuple[Group, ...] = Field(
        ("language",), min_length=1, description="Groups that get adapters."
    )


class HeldOutEvaluation(Section):
    """Rows that are not trained on, looked at while training goes on."""

    shards: Place | None = Field(
        None, description="Folder of shards. None: where `prepare` puts what is not trained on."
    )
    split: str = Field("test", description="Split of those rows.")
    every: PositiveInt = Field(500, description="Steps between evaluations; one more at the end.")
    rows: PositiveInt = Field(256, description="Rows whose loss is taken, from the start.")
    samples: int = Field(16, ge=0, description="Of those, rows that are answered greedily.")
    max_new_tokens: PositiveInt = Field(512, description="Longest sampled answer, tokens.")


class TrainConfig(Section):
    """Full-parameter SFT with DeepSpeed ZeRO under Ray Train."""

    output_dir: Place = Field(
        description="Checkpoints and the exported model go here, or to this URL."
    )
    num_workers: PositiveInt = Field(8, description="Ranks; one process each.")
    min_workers: PositiveInt | None = Field(
        None,
        description="Fewest ranks to go on with where nodes are lost, until there is room for more "
        "again. None: it waits for num_workers.",
    )
    resize_every_s: float = Field(
        60.0,
        ge=0,
        description="Seconds between looks for room for more ranks, with min_workers. More of them "
        "start from the last checkpoint.",
    )
    use_gpu: bool = Field(True, description="One GPU a rank; otherwise CPU over gloo.")
    cpus_per_worker: float = Field(1.0, gt=0, description="CPU cores that Ray reserves a rank.")
    encoders: PositiveInt | None = Field(
        None,
        description="Processes that encode batches, half a CPU each. None: two a rank, or what the "
        "ranks leave room for.",
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(3, description="DeepSpeed ZeRO stage.")
    offload: Literal["none", "optimizer", "all"] = Field(
        "none",
        description="What lies in host memory: the optimiser's state, or (stage 3 only) "
        "the weights too.",
    )
    trainable: tuple[Group, ...] | None = Field(
        None, min_length=1, description="Groups of weights that are trained; None: all of them."
    )
    lora: LoraConfig | None = Field(None, description="Train low-rank adapters instead of weights.")
    global_batch_size: PositiveInt = Field(32, description="Rows in one optimiser step.")
    gradient_accumulation_steps: PositiveInt = Field(1, description="Micro-batches a step.")
    epochs: PositiveInt = Field(3, description="Passes over the shards.")
    max_steps: PositiveInt | None = Field(None, description="Stop after this many steps.")
    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate.")
    schedule: Literal["constant", "cosine", "step"] = Field("step", description="After warm-up.")
    step_decay: Fraction = Field(0.85, description="Factor an epoch, for the step schedule.")
    warmup_steps: int = Field(0, ge=0, description="Linear warm-up in steps.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's two decay rates.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Clip the global gradient norm to this.")
    gradient_checkpointing: bool = Field(True, description="Recompute activations.")
    packing: bool = Field(
        False, description="Put several rows into one sequence where the family can."
    )
    checkpoint_every: PositiveInt = Field(500, description="Steps between checkpoints.")
    max_failures: int = Field(3, ge=0, description="Restarts after a worker's death.")
    evaluation: HeldOutEvaluation | None = Field(
        None, description="Loss and sample answers on held-out rows while it trains."
    )
    peak_tflops: float | None = Field(
        None,
        gt=0,
        description="Dense peak of one device in the compute dtype, TFLOP/s, for MFU and HFU. "
        "None: known for common GPUs, else no utilisation is reported.",
    )
    profile_steps: int = Field(
        0, ge=0, description="Steps to profile (after ten) into output_dir/profile, rank 0."
    )

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.offload == "all" and self.zero_stage != 3:
            raise ValueError("offload all needs zero_stage 3")
        if self.offload == "optimizer" and self.zero_stage == 0:
            raise ValueError("offload optimizer needs zero_stage 1, 2 or 3")
        if self.lora is not None and self.trainable is not None:
            raise ValueError("lora.groups say what is trained; leave out trainable")
        return self

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(
                f"min_workers {self.min_workers} is above num_workers {self.num_workers}"
            )
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        share = self.num_workers * self.gradient_accumulation_steps
        if self.global_batch_size % share:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} does not divide over "
                f"{self.num_workers} workers x {self.gradient_accumulation_steps} micro-batches"
            )
        return self
