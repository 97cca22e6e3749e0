"""What serving and training cost, piece by piece: the file that predictions are made from.

Seconds are of one replica's own time unless they say otherwise. `origin` says whether the numbers
were measured; whatever is predicted from them carries it along.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from stagebeam.schema import Fraction, PositiveInt, Section, Tournament

Seconds = float


class _EngineCosts(Section):
    image_s: Seconds = Field(ge=0, description="To read one image, once a question.")
    prompt_token_s: Seconds = Field(ge=0, description="To read one token of the prompt, once.")
    gpus: float = Field(1.0, ge=0, description="GPUs of a replica.")


class GeneratorCosts(_EngineCosts):
    """A replica that decodes all its rows together: a pass takes `pass_s` + rows * `row_s`."""

    pass_s: Seconds = Field(gt=0, description="A pass, whatever its rows.")
    row_s: Seconds = Field(ge=0, description="More for each row of a pass.")
    max_rows: PositiveInt = Field(64, description="As `serve.generator.scaling.max_batch_rows`.")


class JudgeCosts(_EngineCosts):
    """A replica that reads one round after another, each pair in both orders: `round_s` + orders *
    `order_s`, and `round_s` again for every `max_rows` orders."""

    round_s: Seconds = Field(gt=0, description="A round, whatever its pairs.")
    order_s: Seconds = Field(ge=0, description="More for each pair and order of a round.")
    max_rows: PositiveInt = Field(64, description="As `serve.judge.scaling.max_batch_rows`.")


class HopCosts(Section):
    """Ways between processes. The first three are waiting, the last two a core's time."""

    question_s: Seconds = Field(ge=0, description="Client, proxy, gateway, searcher: a question.")
    generator_s: Seconds = Field(ge=0, description="A call to a generator.")
    judge_s: Seconds = Field(ge=0, description="A call to a judge.")
    gateway_cpu_s: Seconds = Field(ge=0, description="CPU of a gateway replica, a question.")
    searcher_cpu_s: Seconds = Field(ge=0, description="CPU of a searcher replica, a question.")


class Question(Section):
    """What is asked, by `stage_beam`."""

    candidates: PositiveInt = Field(4, description="N, of each stage.")
    tournament: Tournament = "auto"
    stage_tokens: dict[str, PositiveInt] = Field(
        min_length=1, description="Mean tokens of a candidate, by stage, in their order."
    )
    spread: Fraction = Field(
        0.5, description="Lengths are uniform from (1 - spread) to (1 + spread) times the mean."
    )
    prompt_tokens: int = Field(ge=0, description="Tokens of the prompt, images left out.")
    images: int = Field(1, ge=0)

    def lengths(self, mean: int) -> tuple[int, int]:
        """The shortest and the longest candidate of a stage, tokens."""
        reach = math.floor(mean * self.spread)
        return max(1, mean - reach), mean + reach


class TrainingCosts(Section):
    """A row of training, and the machines that it runs on."""

    parameters: PositiveInt = Field(description="Weights of the model, all trained.")
    flops_a_row: float = Field(gt=0, description="Forward and backward, recomputation left out.")
    micro_batch_rows: PositiveInt = Field(description="Rows that a GPU reads at once.")
    bytes_a_weight: PositiveInt = Field(2, description="Of weights and gradients on their way.")
    gpu_tflops: float = Field(gt=0, description="Dense peak of a GPU, TFLOP/s.")
    mfu: float = Field(gt=0, le=1, description="Share of the peak that is reached.")
    gpus_a_node: PositiveInt = 8
    node_gb_s: float = Field(gt=0, description="What a GPU receives from its own node, GB/s.")
    network_gb_s: float = Field(gt=0, description="What a GPU receives from other nodes, GB/s.")
    encode_s: Seconds = Field(ge=0, description="A core's time for a row: decode, tile, tokenise.")
    cores_a_gpu: float = Field(gt=0, description="Cores that encode, for each GPU.")
    stream_share: float = Field(
        gt=0, le=1, description="Images a second through the stream over those of `encode` alone."
    )


class Costs(Section):
    """A file of costs."""

    name: str
    origin: Literal["measured", "assumed"]
    how: str = Field(description="Command, machine and day; or what the assumptions rest on.")
    generator: GeneratorCosts
    judge: JudgeCosts
    hops: HopCosts
    question: Question
    training: TrainingCosts | None = None


def load_costs(path: Path) -> Costs:
    """Read a file of costs. Raises ValueError with one sentence for one that cannot be used."""
    if not path.exists():
        raise ValueError(f"There is no costs file at {path}.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The costs file {path} cannot be read: {error}.") from None
    try:
        return Costs.model_validate(json.loads(text))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None
    except ValidationError as error:
        found = "; ".join(
            f"{'.'.join(map(str, wrong['loc'])) or 'the file'}: {wrong['msg']}"
            for wrong in error.errors()
        )
        raise ValueError(f"{path} is not a costs file: {found}.") from None
